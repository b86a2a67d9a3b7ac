#define LIVELLA_ISA portable
#include "variant.h"
