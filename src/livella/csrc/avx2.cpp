#define LIVELLA_ISA avx2
#include "variant.h"
