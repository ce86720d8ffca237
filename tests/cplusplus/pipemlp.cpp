// The implementation, in a unit of its own.
#define PIPEMLP_IMPLEMENTATION
#include "pipemlp.h"
