#if defined(__x86_64__)

// Everything the standard library brings in stands before the pragma, so that no shared inline function is compiled for
// instructions that the processor may lack.
#include <immintrin.h>

#include "../isa.h"
#include "target_avx2.h"

#define CURVEXT_ISA avx2
#define CURVEXT_VECTOR_BYTES 32
#define CURVEXT_TILE_ROWS 6
#define CURVEXT_TILE_VECTORS 2

#include "primitives.h"
#include "target_end.h"

#endif
