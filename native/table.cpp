// The table of one instruction set's functions.
#include "arch.h"

namespace steno::STENO_TARGET {

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

extern const Kernels table;
const Kernels table = {TEXT(STENO_TARGET), norm, quantise, matmul, add, swiglu, rotate, scale, attend, seal, argmax, gumbel, draw, top};

}  // namespace steno::STENO_TARGET
