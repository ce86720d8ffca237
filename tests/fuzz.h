/* What fuzz targets demand of the library: include it after pipemlp.h. */
#ifndef PMLP_FUZZ_H
#define PMLP_FUZZ_H

#define MUST(condition)                                                                            \
  do                                                                                               \
    if (!(condition)) {                                                                            \
      fprintf(stderr, "%s:%d: not %s\n", __FILE__, __LINE__, #condition);                          \
      abort();                                                                                     \
    }                                                                                              \
  while (0)

#endif
