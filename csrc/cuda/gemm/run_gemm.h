// Where the kernels of each dtype of products are started; each has a source file of its own, so that they compile side by side.
#pragma once
#include "cuda/common/place.h"

namespace growtas::cuda {

enum class Form : int;
struct Product;

void run_product_bf16(Form form, const Product& p, int tile, std::int64_t blocks, Place place);
void run_product_fp16(Form form, const Product& p, int tile, std::int64_t blocks, Place place);
void run_product_fp32(Form form, const Product& p, bool tf32, std::int64_t blocks, Place place);

}  // namespace growtas::cuda
