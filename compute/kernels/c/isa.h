/* A template: the code for one instruction set, whose name is SUFFIX and whose registers hold VECTOR bytes. */
#include "vectors.h"
#include "unpack.h"
#include "multiply.h"
#include "rows.h"

#undef LANES
#undef WORDS
#undef COLUMNS
#undef ROWS
#undef Ints
#undef Floats
#undef BITS
