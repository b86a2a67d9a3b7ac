#define LIVELLA_ISA avx512
#include "variant.h"
