// Between the caller's q, k, v (any dtype, any strides) and panels of fp32 rows, epad floats each, zeros from e on.
//
// Fast for the two layouts that occur: q, k and v of a channel side by side (from an interleaved GEMM; channel stride 3) and
// dense channels. Any other layout is read element by element.
#pragma once
#include "cpu/relative_attention/relative_attention.h"
#include "cpu/relative_attention/rows.h"

namespace growtas::cpu {

constexpr std::int64_t kMaxHeadDim = 256;

inline bool interleaved(const Heads& h) { return h.part == 1 && h.channel == 3; }

template <typename T>
GROWTAS_INLINE float to_float(const T* from) {
    return load(from, 1)[0];
}
GROWTAS_INLINE float to_float(const float* from) { return *from; }

template <typename T>
GROWTAS_INLINE void from_float_to(T* to, float value) {
    store(to, Lanes{} + value, 1);
}
GROWTAS_INLINE void from_float_to(float* to, float value) { *to = value; }

// One row of e elements: to[c] = from[c * step] * factor, zeros from e on.
template <typename T>
GROWTAS_INLINE void pack_row(const T* from, std::int64_t step, float factor, float* to, std::int64_t e, std::int64_t epad) {
    if (step != 1) {
        for (std::int64_t c = 0; c < e; ++c) to[c] = to_float(from + c * step) * factor;
        for (std::int64_t c = e; c < epad; ++c) to[c] = 0.0f;
        return;
    }
    for (std::int64_t c = 0; c < epad; c += kLanes) store(to + c, load(from + c, std::min(kLanes, e - c)) * factor);
}

template <typename T>
GROWTAS_INLINE void unpack_row(const float* from, float factor, T* to, std::int64_t step, std::int64_t e) {
    if (step != 1) {
        for (std::int64_t c = 0; c < e; ++c) from_float_to(to + c * step, from[c] * factor);
        return;
    }
    for (std::int64_t c = 0; c < e; c += kLanes) store(to + c, load(from + c) * factor, std::min(kLanes, e - c));
}

// 3 * count elements of three interleaved rows, as fp32.
GROWTAS_INLINE const float* widen(const float* from, float*, std::int64_t) { return from; }

template <typename T>
GROWTAS_INLINE const float* widen(const T* from, float* scratch, std::int64_t count) {
    for (std::int64_t i = 0; i < count; i += kLanes) store(scratch + i, load(from + i, std::min(kLanes, count - i)));
    return scratch;
}

// 16 channels of q, k, v from, and to, 48 interleaved floats: each result takes lanes of all three vectors, in two steps.
GROWTAS_INLINE void split_lanes(const float* from, Lanes& q, Lanes& k, Lanes& v) {
    const Lanes a = load(from), b = load(from + 16), c = load(from + 32);
    const Lanes q_ab = GROWTAS_SHUFFLE(a, b, 0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 0, 0, 0, 0, 0);
    const Lanes k_ab = GROWTAS_SHUFFLE(a, b, 1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 0, 0, 0, 0, 0);
    const Lanes v_ab = GROWTAS_SHUFFLE(a, b, 2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 0, 0, 0, 0, 0, 0);
    q = GROWTAS_SHUFFLE(q_ab, c, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 17, 20, 23, 26, 29);
    k = GROWTAS_SHUFFLE(k_ab, c, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 18, 21, 24, 27, 30);
    v = GROWTAS_SHUFFLE(v_ab, c, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 19, 22, 25, 28, 31);
}

GROWTAS_INLINE void join_lanes(Lanes q, Lanes k, Lanes v, float* to) {
    const Lanes a = GROWTAS_SHUFFLE(q, k, 0, 16, 0, 1, 17, 0, 2, 18, 0, 3, 19, 0, 4, 20, 0, 5);
    const Lanes b = GROWTAS_SHUFFLE(q, k, 21, 0, 6, 22, 0, 7, 23, 0, 8, 24, 0, 9, 25, 0, 10, 26);
    const Lanes c = GROWTAS_SHUFFLE(q, k, 0, 11, 27, 0, 12, 28, 0, 13, 29, 0, 14, 30, 0, 15, 31, 0);
    store(to, GROWTAS_SHUFFLE(a, v, 0, 1, 16, 3, 4, 17, 6, 7, 18, 9, 10, 19, 12, 13, 20, 15));
    store(to + 16, GROWTAS_SHUFFLE(b, v, 0, 21, 2, 3, 22, 5, 6, 23, 8, 9, 24, 11, 12, 25, 14, 15));
    store(to + 32, GROWTAS_SHUFFLE(c, v, 26, 1, 2, 27, 4, 5, 28, 7, 8, 29, 10, 11, 30, 13, 14, 31));
}

// The loops below the vector ones are vectorised by the compiler, which does well with vectors shorter than 16 lanes.
template <typename Isa>
GROWTAS_INLINE void split(const float* __restrict from, float factor, float* __restrict q, float* __restrict k,
                          float* __restrict v, std::int64_t e) {
    std::int64_t c = 0;
    if (Isa::kWidth == kLanes)
        for (; c + kLanes <= e; c += kLanes) {
            Lanes x, y, z;
            split_lanes(from + 3 * c, x, y, z);
            store(q + c, x * factor), store(k + c, y), store(v + c, z);
        }
    for (; c < e; ++c) q[c] = from[3 * c] * factor, k[c] = from[3 * c + 1], v[c] = from[3 * c + 2];
}

template <typename Isa>
GROWTAS_INLINE void join(const float* __restrict q, float q_factor, const float* __restrict k, const float* __restrict v,
                         float* __restrict to, std::int64_t e) {
    std::int64_t c = 0;
    if (Isa::kWidth == kLanes)
        for (; c + kLanes <= e; c += kLanes) join_lanes(load(q + c) * q_factor, load(k + c), load(v + c), to + 3 * c);
    for (; c < e; ++c) to[3 * c] = q[c] * q_factor, to[3 * c + 1] = k[c], to[3 * c + 2] = v[c];
}

// Asks for the rows some tokens ahead: a head's rows lie far apart, and the processor does not foresee the next one.
constexpr std::int64_t kAhead = 8;

template <bool kWrite, typename T>
GROWTAS_INLINE void prefetch(const T* row, std::int64_t count) {
    const char* bytes = reinterpret_cast<const char*>(row);
    for (std::int64_t i = 0; i < count * static_cast<std::int64_t>(sizeof(T)); i += 64)
        __builtin_prefetch(bytes + i, kWrite, 2);
}

template <bool kWrite, typename T>
GROWTAS_INLINE void prefetch_heads(const Heads& h, const T* token, std::int64_t e) {
    if (interleaved(h)) return prefetch<kWrite>(token + kAhead * h.token, 3 * e);
    if (h.channel != 1) return;
    for (std::int64_t part = 0; part < 3; ++part) prefetch<kWrite>(token + kAhead * h.token + part * h.part, e);
}

// q * factor, k and v of one head as panels of tokens, epad floats each, `row` apart.
template <typename Isa, typename T>
GROWTAS_INLINE void pack_heads(const Heads& from, std::int64_t image, std::int64_t head, std::int64_t tokens, std::int64_t e,
                               std::int64_t epad, std::int64_t row, float factor, float* q, float* k, float* v) {
    const T* base = static_cast<const T*>(from.data) + image * from.image + head * from.head;
    for (std::int64_t n = 0; n < tokens; ++n, base += from.token, q += row, k += row, v += row) {
        if (n + kAhead < tokens) prefetch_heads<false>(from, base, e);
        if (interleaved(from)) {
            float scratch[3 * kMaxHeadDim];
            split<Isa>(widen(base, scratch, 3 * e), factor, q, k, v, e);
            for (std::int64_t c = e; c < epad; ++c) q[c] = k[c] = v[c] = 0.0f;
            continue;
        }
        pack_row(base, from.channel, factor, q, e, epad);
        pack_row(base + from.part, from.channel, 1.0f, k, e, epad);
        pack_row(base + 2 * from.part, from.channel, 1.0f, v, e, epad);
    }
}

template <typename Isa>
GROWTAS_INLINE void join_row(const float* q, float q_factor, const float* k, const float* v, float* to, std::int64_t e) {
    join<Isa>(q, q_factor, k, v, to, e);
}

template <typename Isa, typename T>
GROWTAS_INLINE void join_row(const float* q, float q_factor, const float* k, const float* v, T* to, std::int64_t e) {
    float scratch[3 * kMaxHeadDim + kLanes];
    join<Isa>(q, q_factor, k, v, scratch, e);
    for (std::int64_t i = 0; i < 3 * e; i += kLanes) store(to + i, load(scratch + i), std::min(kLanes, 3 * e - i));
}

// The inverse: q times its factor, k and v to where the caller keeps them.
template <typename Isa, typename T>
GROWTAS_INLINE void unpack_heads(const float* q, float q_factor, const float* k, const float* v, const Heads& to,
                                 std::int64_t image, std::int64_t head, std::int64_t tokens, std::int64_t e,
                                 std::int64_t row) {
    T* base = static_cast<T*>(to.data) + image * to.image + head * to.head;
    for (std::int64_t n = 0; n < tokens; ++n, base += to.token, q += row, k += row, v += row) {
        if (n + kAhead < tokens) prefetch_heads<true>(to, base, e);
        if (interleaved(to)) {
            join_row<Isa>(q, q_factor, k, v, base, e);
            continue;
        }
        unpack_row(q, q_factor, base, to.channel, e);
        unpack_row(k, 1.0f, base + to.part, to.channel, e);
        unpack_row(v, 1.0f, base + 2 * to.part, to.channel, e);
    }
}

// `count` rows of epad floats, `row` apart, to (epad, step) columns; count and epad are multiples of 4.
GROWTAS_INLINE void transpose_panel(const float* from, std::int64_t count, std::int64_t epad, std::int64_t row, float* to,
                                    std::int64_t step) {
    for (std::int64_t n = 0; n < count; n += 4)
        for (std::int64_t c = 0; c < epad; c += 4) {
            Four rows[4];
            for (int i = 0; i < 4; ++i) rows[i] = load_vector<Four>(from + (n + i) * row + c);
            transpose(rows[0], rows[1], rows[2], rows[3]);
            for (int i = 0; i < 4; ++i) store_vector(to + (c + i) * step + n, rows[i]);
        }
}

}  // namespace growtas::cpu
