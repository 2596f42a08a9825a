// Where a kernel runs. No CUDA header is needed to include this one: a stream is a void*.
#pragma once

namespace growtas::cuda {

// The device's number and a stream of it.
struct Place {
    int device;
    void* stream;
};

}  // namespace growtas::cuda
