#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../isa.h"

#define CURVEXT_ISA portable
#define CURVEXT_VECTOR_BYTES 16
#define CURVEXT_TILE_ROWS 4
#define CURVEXT_TILE_VECTORS 2

#include "primitives.h"
