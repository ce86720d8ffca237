/* pipemlp.h - v0.1 - train multilayer perceptrons as a pipeline, with the bits of serial training

   DO THIS

      Copy this file into your project. In ONE source file write

         #define PIPEMLP_IMPLEMENTATION
         #include "pipemlp.h"

      and include it without the define wherever else you need it. Then

         cc -O3 main.c -pthread -lm

      C99 or newer, C++11 or newer, with gcc or clang; POSIX threads, or Win32 threads (tried with
      mingw-w64 under Wine). MSVC is provided for but has not been tried. Nothing but the C library
      is needed.

   A COMPLETE PROGRAM

      ---8<--- example.c
      // Learns in which quadrant a point lies: two workers, four micro-batches a step.
      #define PIPEMLP_IMPLEMENTATION
      #include "pipemlp.h"
      #include <stdio.h>

      int main(void) {
          static float x[1000][2];
          static int quadrant[1000];
          int sizes[] = {2, 32, 32, 4}, i;              // 2 inputs, three layers, 4 classes
          pmlp_model_desc model_desc = {0};             // all zero means: the defaults
          pmlp_trainer_desc desc = {0};
          pmlp_data data = {1000, &x[0][0], quadrant, NULL};
          pmlp_model *model;
          pmlp_trainer *trainer;
          pmlp_stats stats = {0};
          pmlp_verify_report report;
          pmlp_error error;

          for (i = 0; i < 1000; i++) {
              x[i][0] = (float)(i * 37 % 1000) / 500 - 1;
              x[i][1] = (float)(i * 83 % 1000) / 500 - 1;
              quadrant[i] = (x[i][0] > 0) + 2 * (x[i][1] > 0);
          }
          model_desc.layers = 3;
          model_desc.sizes = sizes;
          desc.workers = 2;
          desc.microbatches = 4;
          desc.batch = 50;
          if (pmlp_model_create(&model_desc, &model, &error) ||
              pmlp_verify(model, &desc, &data, 20, &report, &error) ||
              pmlp_trainer_create(model, &desc, &trainer, &error)) {
              printf("%s\n", error.text);
              return 1;
          }
          for (i = 0; i < 40; i++)
              if (pmlp_trainer_epoch(trainer, &data, &stats)) {
                  printf("%s\n", pmlp_trainer_error(trainer)->text);
                  return 1;
              }
          printf("loss %.3f, accuracy %.3f, same bits as serial: %s\n", stats.loss, stats.accuracy,
                 report.identical ? "yes" : "no");
          pmlp_trainer_destroy(trainer);                // writes the weights back to the model
          pmlp_model_destroy(model);
          return report.identical ? 0 : 1;
      }
      --->8---

   PIPEMLP DOES NOT

      convolve, differentiate what you write, read Python, or choose your network. It trains stacks
      of dense layers, and does that one thing such that you can see how. It never exits, prints or
      keeps state outside its objects.

   WHERE WHAT IS (search for the marker)

      >>api-config     version, static builds          >>implementation  all below it is private
      >>common         results, errors, memory, log    >>platform        threads, atomics, clock
      >>model          what is trained                 >>memory          memory, errors, random
      >>schedule       who does what when              >>kernels         what the CPU computes
      >>trainer        runs a schedule                 >>cpu-backend     the CPU's operations
      >>images         IDX files                       >>check           proves schedules
      >>backend        how to plug in other hardware   >>simulate        times and draws them
                                                       >>edges >>partition >>validation
                                                       >>stage >>worker >>verify >>io

   STEP BY STEP

      1. Describe the network: pmlp_model_desc, pmlp_model_create(). The model holds the weights,
         in PyTorch's layout, [n_out][n_in], and says what they compute: activations and loss.
      2. Describe the training: pmlp_trainer_desc, pmlp_trainer_create(). Workers, micro-batches,
         schedule, optimizer. The trainer cuts the layers into stages, proves the schedule, starts
         the threads and takes the weights.
      3. pmlp_trainer_step() with a batch of yours, or pmlp_trainer_epoch() with a data set. Both
         tell loss, accuracy, speed and how long each worker was idle.
      4. pmlp_trainer_eval() on data that was not trained on.
      5. pmlp_trainer_sync() when you want to look at the weights in between; then
         pmlp_model_predict(), pmlp_model_params(), pmlp_model_hash().
      6. pmlp_trainer_destroy(), which writes the weights back, then pmlp_model_destroy().

   ON PIPELINES

      Cut a network of layers into stages and give each stage a worker. Worker 1 cannot start
      before worker 0 is done with the layers below, so with one batch at a time the workers take
      turns: two of them are no faster than one. Cut the batch into micro-batches as well and
      worker 0 goes on with the next while worker 1 has the first. What is left idle at both ends
      is the bubble. F3 is the forward of micro-batch 3, B3 its backward, which takes twice as long
      (== continues an action):

         sequential (one micro-batch in flight)           makespan 24 for p = 2, m = 4
         worker 0  | F0 .. .. .. B0 == F1 .. .. .. B1 == F2 .. .. .. B2 == F3 .. .. .. B3 == |
         worker 1  | .. F0 B0 == .. .. .. F1 B1 == .. .. .. F2 B2 == .. .. .. F3 B3 == .. .. |

         GPipe: all forwards, then all backwards          makespan 15
         worker 0  | F0 F1 F2 F3 .. .. .. B0 == B1 == B2 == B3 == |
         worker 1  | .. F0 F1 F2 F3 B0 == B1 == B2 == B3 == .. .. |

         1F1B: as soon as there is a backward, do it      makespan 15
         worker 0  | F0 F1 .. .. B0 == F2 B1 == F3 B2 == .. B3 == |
         worker 1  | .. F0 B0 == F1 B1 == F2 B2 == F3 B3 == .. .. |

      p workers and m micro-batches need (m + p - 1) rounds where m would do: the bubble is p - 1
      rounds for GPipe and 1F1B alike. 1F1B holds the activations of at most p micro-batches, GPipe
      of all m.

      A backward has two halves. I computes the gradient for the stage below, which waits for it; W
      computes the gradient of the weights, for which nobody waits before the update. B is I, then
      W. The trainer hands the gradient over between the two, so that a measured step is shorter
      than the drawing above, which counts a B as one piece; pmlp_schedule_lower() shows the lists
      as they run, and pmlp_schedule_simulate() times those, too. The first stage needs no I for
      its lowest layer. And since W on few rows moves a whole dW through the caches for little
      arithmetic, the trainer puts it off until 128 rows are together, the worker would have to
      wait, or the update comes; desc.w_rows = 1 does each W where the schedule has it.

      Where to cut? Layers differ in size, and the first is often the largest: of 784-512-256-128-10
      it is 62 % of the arithmetic, so that two workers gain 1.62x at most if a stage is made of
      whole layers. A boundary may therefore also lie inside the first layer (pmlp_cut): one stage
      computes some of its outputs, the next the others, each from the input rows themselves.

      How much a pipeline can gain has three bounds. Balance: the slowest stage sets the pace. Fill
      and drain: m / (m + p - 1). Hand-offs: each costs a little, so that micro-batches should not
      get arbitrarily small. pmlp_partition() tells the first, pmlp_schedule_simulate() the first
      two.

   ON SCHEDULES

      A schedule is data: a list of actions for each worker. Builders make the known ones; you can
      write your own as text, one row per worker, `stage op micro-batch`:

         0F0,0F1,0B0,0F2,0B1,0B2
         1F0,1B0,1F1,1B1,1F2,1B2

      pmlp_schedule_parse() reads it, pmlp_schedule_check() proves it or says what is wrong with
      it, pmlp_schedule_draw() shows it, and desc.custom trains with it. A worker may own several
      stages. The text is that of torch.distributed.pipelining's CSV files.

      The check is a proof: queues with blocking ends form a Kahn network (Kahn, 1974), in which it
      does not depend on timing whether everybody reaches the end. One replay decides for all runs.

   ON EQUAL BITS

      A synchronous pipeline computes the same sums as serial training. Floating-point sums depend
      on their order, so "the same" needs care, and here it is meant to the bit: the trained
      weights do not depend on workers, stages, micro-batches, schedule, threads or the compiler's
      optimization level, and equal those of plain training on whole batches. Each sum of a matrix
      product is one chain in the order of its index; gradients continue their chains from one
      micro-batch to the next in the order of the samples; a softmax subtracts its own row's
      maximum; losses are added in the order of the samples; random numbers belong to layer and
      element, not to whoever draws them. pmlp_verify() tests the promise on your network.

      It holds for one compiler, C library and instruction set; pmlp_cpu_backend_isa() fixes the
      latter. Options such as -ffast-math permit the compiler to break it. So does a rounding or
      denormals mode that the calling thread changes after the trainer was created: the workers'
      threads keep the old one.

   ON MEMORY

      The activations of a whole batch lie in one piece, whatever the schedule, so that gradients
      of neighbouring micro-batches can be computed as one product: peak memory is that of GPipe
      even for 1F1B. pmlp_check.peak says what a trainer that kept only what it must would hold.
      Steps allocate nothing; an epoch allocates the order of its rows once.

   ON THREADS

      A trainer with p workers starts p - 1 threads; the thread that calls is worker 0. Idle
      workers spin for about a millisecond, then sleep; with more workers than cores they sleep at
      once. One call at a time per trainer; different trainers and models are independent.
      desc.no_threads runs the same lists on the calling thread alone, with the same bits.

   ON ERRORS

      Everything that can fail returns a pmlp_result, 0 being success, with a sentence in a
      pmlp_error of yours or in pmlp_trainer_error(). When a worker fails inside a step, the first
      failure is kept, all workers stop, and the call returns it with stage, micro-batch and
      operation; nobody hangs. No update begins before every gradient of the step is there, so that
      a step which fails earlier leaves the weights as they were.

   ON OTHER HARDWARE

      A back end is a table of functions, a layer's operations (see >>backend); edges, which carry
      activations and gradients from stage to stage, are another. Both are public: fill in a table,
      set desc.backend or desc.edges. The tables in this file are the CPU and threads of one
      process.

   ON SPEED

      Compile with -O3. The matrix products use AVX-512, AVX2, SSE2 or NEON by hand, whatever this
      machine has (NEON was run under emulation only). A batch should give each micro-batch some
      tens of rows.

   LICENSE

      MIT-0 or public domain, whichever you prefer; the texts are in the file LICENSE.
*/

/* Strict C99 hides clock_gettime() unless it is asked for before the first system header. */
#if defined(PIPEMLP_IMPLEMENTATION) && defined(__STRICT_ANSI__) && !defined(_POSIX_C_SOURCE) &&    \
    !defined(_WIN32)
#  define _POSIX_C_SOURCE 200809L
#endif

#ifndef PIPEMLP_H
#define PIPEMLP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*============================================================================================*/
/* >>api-config                                                                               */
/*============================================================================================*/

#define PMLP_VERSION_MAJOR 0
#define PMLP_VERSION_MINOR 1
#define PMLP_VERSION_PATCH 0

/* Define PIPEMLP_STATIC before including the header to make every function private to the file
   that holds the implementation; several files of one program may then each hold their own. */
#ifndef PMLP_API
#  if defined(PIPEMLP_STATIC) && (defined(__GNUC__) || defined(__clang__))
#    define PMLP_API static __attribute__((unused))
#  elif defined(PIPEMLP_STATIC)
#    define PMLP_API static
#  else
#    define PMLP_API extern
#  endif
#endif

#ifdef __cplusplus
extern "C" {
#endif

/*============================================================================================*/
/* >>common: results, errors, memory, log                                                     */
/*============================================================================================*/

/* Every result the library can return: X(name, text). One list makes the enum and both texts. */
#define PMLP_RESULTS(X)                                                                        \
    X(PMLP_OK, "success")                                                                      \
    X(PMLP_BUSY, "not ready yet, ask again (edges only)")                                      \
    X(PMLP_ERROR_ARGUMENT, "an argument or a field of a desc is invalid")                      \
    X(PMLP_ERROR_SHAPE, "sizes that must match do not")                                        \
    X(PMLP_ERROR_DATA, "the data holds a value that is not allowed")                           \
    X(PMLP_ERROR_MEMORY, "out of memory")                                                      \
    X(PMLP_ERROR_THREAD, "a thread could not be started")                                      \
    X(PMLP_ERROR_STATE, "the object is not in a state that allows this call")                  \
    X(PMLP_ERROR_SCHEDULE, "the schedule breaks a rule")                                       \
    X(PMLP_ERROR_DEADLOCK, "the schedule cannot make progress")                                \
    X(PMLP_ERROR_PARSE, "the text or file is not in the expected form")                        \
    X(PMLP_ERROR_FILE, "a file could not be read or written")                                  \
    X(PMLP_ERROR_BACKEND, "the back end failed")                                               \
    X(PMLP_ERROR_CANCELLED, "stopped by the progress callback")                                \
    X(PMLP_ERROR_UNSUPPORTED, "not available in this build or on this machine")

typedef enum pmlp_result {
#define PMLP__RESULT_ENUM(name, text) name,
    PMLP_RESULTS(PMLP__RESULT_ENUM)
#undef PMLP__RESULT_ENUM
    PMLP_RESULT_COUNT
} pmlp_result;

/* "PMLP_ERROR_SHAPE" and the like; never NULL, whatever the value. Static storage. */
PMLP_API const char *pmlp_result_name(pmlp_result result);
/* The sentence of the list above; never NULL, whatever the value. Static storage. */
PMLP_API const char *pmlp_result_text(pmlp_result result);

/* What went wrong, where, and in one sentence. Functions that take a `pmlp_error *error` fill it
   when they fail and leave it alone when they succeed; NULL is allowed. Errors of a trainer's own
   calls live in the trainer: pmlp_trainer_error(). */
typedef struct pmlp_error {
    pmlp_result result;
    int worker, stage, microbatch; /* where in the pipeline; -1 if that has no meaning */
    char op[8];                    /* "F", "I", "W", "U", "SEND_F", ... or "" */
    char text[320];                /* one sentence, no newline, always terminated */
} pmlp_error;

/* Where memory comes from. All-zero means malloc and free. alloc may return NULL: every function
   survives that and returns PMLP_ERROR_MEMORY. Both may be called from any thread of the caller or
   of a trainer, so they must be thread-safe unless the trainer runs with no_threads. */
typedef struct pmlp_allocator {
    void *(*alloc)(size_t bytes, void *user);
    void (*free)(void *pointer, void *user); /* pointer is never NULL */
    void *user;
} pmlp_allocator;

typedef enum pmlp_log_level { PMLP_LOG_ERROR, PMLP_LOG_WARNING, PMLP_LOG_INFO } pmlp_log_level;

/* Where messages go. All-zero means nowhere. Called on the thread that calls the library. */
typedef struct pmlp_logger {
    void (*log)(pmlp_log_level level, const char *text, void *user);
    void *user;
} pmlp_logger;

/* A ready logger: `desc.logger.log = pmlp_log_stderr`. The only code here that prints. */
PMLP_API void pmlp_log_stderr(pmlp_log_level level, const char *text, void *user);

/* FNV-1a, 64 bit, of `size` bytes, continuing from `hash` (0 starts a new one). */
PMLP_API uint64_t pmlp_hash(uint64_t hash, const void *bytes, size_t size);

/*============================================================================================*/
/* >>model: what is trained                                                                   */
/*                                                                                            */
/* Shape letters, fixed for the whole library:                                                */
/*   L layers, layer l has n_in inputs and n_out outputs, z = W x + b, y = f(z)               */
/*   B rows of a batch, m micro-batches, p workers, v stages per worker, S = p v stages       */
/*   dz, dx, dW, db: the derivative of the batch's mean loss by z, x, W, b                    */
/*============================================================================================*/

typedef enum pmlp_activation {
    PMLP_ACTIVATION_DEFAULT, /* ReLU, and linear for the last layer */
    PMLP_RELU,               /* max(z, 0) */
    PMLP_SIGMOID,            /* 1 / (1 + e^-z) */
    PMLP_TANH,
    PMLP_GELU, /* z Phi(z), the exact form with erf (Hendrycks and Gimpel, 2016) */
    PMLP_LINEAR,
    PMLP_ACTIVATION_COUNT
} pmlp_activation;

typedef enum pmlp_loss {
    PMLP_LOSS_DEFAULT, /* softmax cross-entropy */
    PMLP_LOSS_XENT,    /* -log softmax(y)[label], mean over rows; wants labels */
    PMLP_LOSS_MSE,     /* sum over outputs of 1/2 (target - y)^2, mean over rows; wants targets, or
                          labels, which then mean one-hot targets */
    PMLP_LOSS_COUNT
} pmlp_loss;

/* How weights begin: uniform in [-limit, limit], biases 0. Uniform because it needs nothing but
   exact arithmetic, so a seed gives the same weights with every compiler and C library. */
typedef enum pmlp_init {
    PMLP_INIT_DEFAULT, /* He for ReLU and GELU, Xavier otherwise */
    PMLP_INIT_HE,      /* limit = sqrt(6 / n_in)            (He et al., 2015) */
    PMLP_INIT_XAVIER,  /* limit = sqrt(6 / (n_in + n_out))  (Glorot and Bengio, 2010) */
    PMLP_INIT_COUNT
} pmlp_init;

/* "relu", "xent", ... ; "?" for a value that is none. Static storage. */
PMLP_API const char *pmlp_activation_name(pmlp_activation activation);
PMLP_API const char *pmlp_loss_name(pmlp_loss loss);

typedef struct pmlp_model pmlp_model;

typedef struct pmlp_model_desc {
    int layers;                          /* L >= 1 */
    const int *sizes;                    /* [L + 1]: inputs, then each layer's outputs; copied */
    pmlp_activation hidden;              /* of all layers but the last; default ReLU */
    pmlp_activation output;              /* of the last layer; default linear */
    const pmlp_activation *activations;  /* [L] instead of the two above, or NULL; copied */
    pmlp_loss loss;                      /* default softmax cross-entropy */
    pmlp_init init;                      /* default by activation */
    uint64_t seed;                       /* of the initial weights; 0 is a seed like any other */
    pmlp_allocator allocator;            /* default malloc and free */
} pmlp_model_desc;

/* One layer's parameters, as files and the API see them (PyTorch's nn.Linear layout). */
typedef struct pmlp_params {
    size_t n_in, n_out;
    pmlp_activation activation; /* resolved, never _DEFAULT */
    float *w;                   /* [n_out][n_in], owned by the model */
    float *b;                   /* [n_out], owned by the model */
} pmlp_params;

/* A batch or a data set, in the caller's memory; read only, and only during the call. */
typedef struct pmlp_data {
    size_t rows;
    const float *x;       /* [rows][n_in of layer 0] */
    const int *labels;    /* [rows], each in 0 .. n_out of the last layer - 1; or NULL */
    const float *targets; /* [rows][n_out of the last layer], mean squared error only; or NULL */
} pmlp_data;

/* Creates a model with initial weights. *model is NULL on failure.
   Errors: ARGUMENT (no sizes, a size < 1, an unknown enum value), MEMORY. */
PMLP_API pmlp_result pmlp_model_create(const pmlp_model_desc *desc, pmlp_model **model,
                                       pmlp_error *error);
/* NULL is allowed. Destroy the model's trainer first: it still writes the weights back. */
PMLP_API void pmlp_model_destroy(pmlp_model *model);
/* The desc with every default resolved; its pointers point into the model. */
PMLP_API pmlp_model_desc pmlp_model_query_desc(const pmlp_model *model);
/* Number of weights and biases of all layers. */
PMLP_API size_t pmlp_model_param_count(const pmlp_model *model);
/* Layer `layer` in 0 .. L-1. Read and write freely while no trainer owns the model. While one does,
   the values are those of the last pmlp_trainer_sync() and must not be written, nor may the model
   be read on another thread while a call of its trainer runs.
   Errors: ARGUMENT; STATE if a trainer has stepped since its last sync. */
PMLP_API pmlp_result pmlp_model_params(pmlp_model *model, int layer, pmlp_params *params,
                                       pmlp_error *error);
/* FNV-1a 64 over all weights and biases, layer by layer, in the layout above: two runs with equal
   bits give equal words. Errors: STATE as above. */
PMLP_API pmlp_result pmlp_model_hash(const pmlp_model *model, uint64_t *hash, pmlp_error *error);
/* Same layers, same weights, no trainer. Errors: STATE as above, MEMORY. */
PMLP_API pmlp_result pmlp_model_clone(const pmlp_model *model, pmlp_model **clone,
                                      pmlp_error *error);
/* Runs x [rows][n_in] through the network on the calling thread: y [rows][n_out] holds the class
   probabilities if the loss is softmax cross-entropy, else the last layer's outputs. Several
   threads may predict with one model at a time. Packs the weights on each call, so give it many
   rows at once. Errors: ARGUMENT; STATE as above; MEMORY. */
PMLP_API pmlp_result pmlp_model_predict(const pmlp_model *model, const float *x, size_t rows,
                                        float *y, pmlp_error *error);

/*============================================================================================*/
/* >>schedule: who does what in which order                                                   */
/*                                                                                            */
/* A schedule is one list of actions per worker. Builders and text files write it; the        */
/* checker, the simulator, the printer and the trainer read it. Nothing here trains.          */
/*============================================================================================*/

typedef enum pmlp_op {
    PMLP_OP_NONE,
    PMLP_OP_F,      /* forward of one micro-batch through one stage */
    PMLP_OP_I,      /* backward for the input: dz of the stage's layers, dx for the stage below */
    PMLP_OP_W,      /* backward for the weights: dW, db */
    PMLP_OP_B,      /* I, then W */
    PMLP_OP_U,      /* the optimizer's update of one stage; microbatch is -1 */
    PMLP_OP_SEND_F, /* after lowering: give activations to stage + 1 */
    PMLP_OP_RECV_F, /* take activations from stage - 1 */
    PMLP_OP_SEND_B, /* give gradients to stage - 1 */
    PMLP_OP_RECV_B, /* take gradients from stage + 1 */
    PMLP_OP_COUNT
} pmlp_op;

/* "F", "I", ..., "SEND_F" as in the text form; "?" for a value that is none. Static storage. */
PMLP_API const char *pmlp_op_name(pmlp_op op);

typedef struct pmlp_action {
    pmlp_op op;
    int stage;      /* 0 .. S-1 */
    int microbatch; /* 0 .. m-1; -1 for U */
} pmlp_action;

typedef enum pmlp_schedule_kind {
    PMLP_SCHEDULE_DEFAULT,    /* 1F1B */
    PMLP_SCHEDULE_SEQUENTIAL, /* one micro-batch at a time: no overlap at all */
    PMLP_SCHEDULE_GPIPE,      /* all forwards, then all backwards (Huang et al., 2019) */
    PMLP_SCHEDULE_1F1B,       /* warm up, then one forward, one backward (Narayanan et al., 2019,
                                 the flushing form of Narayanan et al., 2021) */
    PMLP_SCHEDULE_KIND_COUNT
} pmlp_schedule_kind;

/* "sequential", "gpipe", "1f1b"; "?" for a value that is none. Static storage. */
PMLP_API const char *pmlp_schedule_kind_name(pmlp_schedule_kind kind);

typedef struct pmlp_schedule pmlp_schedule;

typedef struct pmlp_schedule_desc {
    pmlp_schedule_kind kind;  /* default 1F1B */
    int workers;              /* p; default 1 */
    int microbatches;         /* m; default 1 */
    pmlp_allocator allocator; /* default malloc and free */
} pmlp_schedule_desc;

/* Builds a schedule. *schedule is NULL on failure. Errors: ARGUMENT, MEMORY. */
PMLP_API pmlp_result pmlp_schedule_create(const pmlp_schedule_desc *desc, pmlp_schedule **schedule,
                                          pmlp_error *error);
/* Reads the text form: one row per worker, actions separated by commas, `0F0,0F1,1B0` being stage,
   op, micro-batch; empty cells and cells of blanks are skipped, '\r' is allowed, blank rows after
   the last are ignored. It is the CSV that torch.distributed.pipelining reads and writes. `nU`
   (update of stage n, no micro-batch) may be left out: it is then added at the end of the row. Any
   mixture of B and I, W is read; whether it makes sense is for pmlp_schedule_check() to say. `text`
   need not be terminated. allocator may be NULL. Errors: PARSE with row and cell; SCHEDULE if two
   workers claim a stage or a stage has no worker; MEMORY. */
PMLP_API pmlp_result pmlp_schedule_parse(const char *text, size_t size,
                                         const pmlp_allocator *allocator, pmlp_schedule **schedule,
                                         pmlp_error *error);
/* NULL is allowed. */
PMLP_API void pmlp_schedule_destroy(pmlp_schedule *schedule);

PMLP_API int pmlp_schedule_workers(const pmlp_schedule *schedule);      /* p */
PMLP_API int pmlp_schedule_stages(const pmlp_schedule *schedule);       /* S */
PMLP_API int pmlp_schedule_microbatches(const pmlp_schedule *schedule); /* m */
/* The worker that owns the stage; -1 if there is no such stage. */
PMLP_API int pmlp_schedule_stage_worker(const pmlp_schedule *schedule, int stage);
/* The worker's list, owned by the schedule; NULL and *count 0 if there is no such worker. */
PMLP_API const pmlp_action *pmlp_schedule_actions(const pmlp_schedule *schedule, int worker,
                                                  int *count);

/* Writes the text form that pmlp_schedule_parse() reads (of a lowered schedule, with SEND and RECV,
   which it does not read) into buffer (terminated if size > 0, cut if
   too small). *length, which may be NULL, becomes the full length without the terminator. An update
   that stands at the end of its row, where parsing would add it, is left out. Errors: ARGUMENT. */
PMLP_API pmlp_result pmlp_schedule_print(const pmlp_schedule *schedule, char *buffer, size_t size,
                                         size_t *length);

/* Makes a new schedule with the hand-offs as actions of their own: B becomes I, W; each SEND stands
   right after what it sends, each RECV right before what needs it; stages of one worker hand over
   without either. This is what the trainer runs. Errors: SCHEDULE if it is lowered already;
   MEMORY. */
PMLP_API pmlp_result pmlp_schedule_lower(const pmlp_schedule *schedule, pmlp_schedule **lowered,
                                         pmlp_error *error);

typedef struct pmlp_check {
    int peak;            /* most micro-batches that any worker holds activations of at once: forward
                            done, weights' gradient not; added up over its stages */
    int slots;           /* fewest slots per edge with which the schedule runs, if asked to find
                            them, else the number given */
    int *peaks;          /* [p], filled for each worker, or NULL */
    int *forward_slots;  /* [S-1], fewest for edge s -> s+1, 0 inside one worker; or NULL */
    int *backward_slots; /* [S-1], fewest for edge s+1 -> s; or NULL */
} pmlp_check;

/* Proves a schedule, or says what is wrong with it. The rules:
   - every F exactly once; every backward exactly once, as B or as I and W; one U per stage;
   - on its worker: F before I before W, W in ascending order of micro-batches (the order is what
     makes the bits of the gradient), U after every W;
   - with bounded queues between stages and blocking ends, all workers reach the end of their lists.
     Such a pipeline is a Kahn network: whether it deadlocks does not depend on timing, so that one
     replay proves it for all runs. U waits for the last W of every stage. slots > 0: with that many
     slots on every edge; 0: finds the fewest. report may be NULL; set its pointers to NULL or to
     arrays of your own. Errors: SCHEDULE or DEADLOCK, with worker, stage, micro-batch and op in
     *error and a sentence that names the action and what it lacks; MEMORY. */
PMLP_API pmlp_result pmlp_schedule_check(const pmlp_schedule *schedule, int slots,
                                         pmlp_check *report, pmlp_error *error);

/* What an action costs, in any unit of time. All-zero means F = I = W = 1 and free hand-offs. */
typedef struct pmlp_costs {
    const double *f, *i, *w; /* [S] each; NULL means 1 for every stage */
    const double *u;         /* [S]; NULL means 0 */
    double transfer;         /* from the end of the producer to the earliest begin of the consumer,
                                between different workers */
} pmlp_costs;

typedef struct pmlp_simulation {
    double makespan; /* from the first begin to the last end */
    double busiest;  /* the largest sum of costs on one worker: no schedule can be shorter */
    double bubble;   /* idle share of all workers, 0 .. 1 */
} pmlp_simulation;

/* Times a schedule under given costs with unbounded edges. begin, if not NULL, is [sum of all list
   lengths], worker by worker: when each action begins. costs may be NULL. Errors: ARGUMENT if a
   cost is not a finite number >= 0; Errors: as the checker's
   if the schedule cannot finish; MEMORY. */
PMLP_API pmlp_result pmlp_schedule_simulate(const pmlp_schedule *schedule, const pmlp_costs *costs,
                                            double *begin, pmlp_simulation *simulation,
                                            pmlp_error *error);

/* Draws the simulated timeline as text, one row per worker, time to the right; a cell `F3` is the
   forward of micro-batch 3, `==` continues an action, `..` is idle; stages are named only where a
   worker has several (`1F3`). costs may be NULL; `unit` is the time one cell stands for, 0 means 1.
   Buffer as in pmlp_schedule_print(). Errors: as the simulator's. */
PMLP_API pmlp_result pmlp_schedule_draw(const pmlp_schedule *schedule, const pmlp_costs *costs,
                                        double unit, char *buffer, size_t size, size_t *length,
                                        pmlp_error *error);

/*============================================================================================*/
/* >>trainer: runs a schedule                                                                 */
/*============================================================================================*/

typedef enum pmlp_optimizer {
    PMLP_OPTIMIZER_DEFAULT, /* SGD */
    PMLP_SGD,               /* w -= lr g */
    PMLP_MOMENTUM,          /* u = momentum u + g;  w -= lr u */
    PMLP_NESTEROV,          /* u = momentum u + g;  w -= lr (g + momentum u)
                               (Sutskever et al., 2013) */
    PMLP_ADAM,              /* Kingma and Ba, 2015; weight decay added to the gradient */
    PMLP_ADAMW,             /* Loshchilov and Hutter, 2019; weight decay apart from the gradient */
    PMLP_OPTIMIZER_COUNT
} pmlp_optimizer;

/* "sgd", "momentum", ...; "?" for a value that is none. Static storage. */
PMLP_API const char *pmlp_optimizer_name(pmlp_optimizer optimizer);

typedef struct pmlp_trainer pmlp_trainer;
typedef struct pmlp_backend pmlp_backend;
typedef struct pmlp_edges pmlp_edges;

/* What a step, an epoch or an evaluation did. */
typedef struct pmlp_stats {
    uint64_t step;             /* steps of this trainer so far */
    uint64_t epoch;            /* epochs of this trainer completed so far */
    size_t steps, rows;        /* of this call so far */
    size_t total_rows;         /* rows that this call will have done at its end */
    double loss;               /* mean over the rows of this call */
    double accuracy;           /* share of rows whose largest output is the label's, or -1 */
    double seconds;            /* of this call */
    double samples_per_second; /* rows / seconds */
    double gradient_norm;      /* of the last step, before clipping; 0 if nobody asked for it */
    int workers;
    const double *idle;        /* [workers], share of `seconds` that each spent waiting; until the
                                  next call with this trainer */
} pmlp_stats;

/* Called by pmlp_trainer_epoch() after each step, on the thread that called it. Returning false
   ends the epoch with PMLP_ERROR_CANCELLED; the trainer stays usable. It may call
   pmlp_trainer_sync(), pmlp_trainer_set_learning_rate() and queries, no other function of the same
   trainer. */
typedef bool (*pmlp_progress_fn)(const pmlp_stats *stats, void *user);

/* A boundary between two stages lies before `column` of `layer`. Column 0: between whole layers.
   Only layer 0 may be cut inside, at a multiple of PMLP_COLUMN_STEP: the stage below computes its
   outputs 0 .. column-1, the stage above the others, from the same input rows, which it reads
   itself. Nothing is summed twice, so the bits stay equal; and the first layer is often the largest
   by far. */
typedef struct pmlp_cut {
    int layer, column;
} pmlp_cut;

#define PMLP_COLUMN_STEP 32

typedef struct pmlp_trainer_desc {
    int workers;                   /* p; default 1 */
    int microbatches;              /* m; default 1 for one worker, else 4; may be less than p */
    size_t batch;                  /* rows of a batch, the most that a step may have; default 128 */
    pmlp_schedule_kind schedule;   /* default 1F1B */
    const pmlp_schedule *custom;   /* a schedule of your own instead of workers, microbatches and
                                      schedule; copied */
    const pmlp_cut *cuts;          /* [S - 1]: where stages 1, 2, ... begin; default
                                      pmlp_partition(); copied */
    bool whole_layers;             /* do not cut inside layer 0 */
    int slots;                     /* per edge between stages; default m, which never blocks */
    size_t w_rows; /* W is put off until so many rows are together, see ON PIPELINES;
                                      1: done where the schedule has it; default 128 */

    pmlp_optimizer optimizer;      /* default SGD */
    float learning_rate;           /* default 0.1 for SGD, 0.05 with momentum, 0.001 for Adam */
    float momentum;                /* default 0.9 */
    float beta1, beta2, epsilon;   /* Adam; default 0.9, 0.999, 1e-8 */
    float weight_decay;            /* of weights, not of biases; default 0 */
    float clip_norm;               /* longest global gradient allowed; default 0: no clipping */

    uint64_t seed;                 /* of the shuffling */
    bool no_shuffle;               /* epochs take the rows in the order given */
    bool no_threads;               /* run all workers' lists on the calling thread */
    bool gradient_norm;            /* compute it even if clip_norm is 0 */

    const pmlp_backend *backend;   /* default pmlp_cpu_backend() */
    const pmlp_edges *edges;       /* hand-off between stages; default the back end's */
    pmlp_progress_fn progress;     /* default none */
    void *progress_user;
    pmlp_logger logger;            /* default silent */
    pmlp_allocator allocator;      /* default malloc and free */
} pmlp_trainer_desc;

/* Creates a trainer with p - 1 threads (the calling thread of each step is worker 0) or none. The
   trainer owns the model's weights until it is destroyed; the model must outlive it. *trainer is
   NULL on failure. Errors: ARGUMENT, SHAPE (more stages than places to cut), STATE (the model has a
   trainer), SCHEDULE or DEADLOCK (the checker's), MEMORY, THREAD, BACKEND. */
PMLP_API pmlp_result pmlp_trainer_create(pmlp_model *model, const pmlp_trainer_desc *desc,
                                         pmlp_trainer **trainer, pmlp_error *error);
/* Joins the threads, writes the weights back to the model, frees everything. NULL is allowed. */
PMLP_API void pmlp_trainer_destroy(pmlp_trainer *trainer);

/* The calls below may come from any thread, one at a time: a second call while one runs returns
   PMLP_ERROR_STATE and changes nothing. Every other failure has its sentence in
   pmlp_trainer_error(). Bad arguments and data are found before anything is computed: the trainer
   stays usable, as if the call had not been made. A failure inside the pipeline (back end, edge,
   memory) makes the trainer refuse further work with PMLP_ERROR_STATE; if it happened before the
   updates began, the weights are those of the last complete step, which sync and destroy still
   read; later, they are lost, and the model says so. stats may be NULL everywhere. */

/* One optimizer step on the mean loss of one batch, 1 <= batch->rows <= desc.batch. */
PMLP_API pmlp_result pmlp_trainer_step(pmlp_trainer *trainer, const pmlp_data *batch,
                                       pmlp_stats *stats);
/* One pass over the data in batches of desc.batch rows, the last one smaller if need be, in an
   order drawn from desc.seed and the number of the epoch. */
PMLP_API pmlp_result pmlp_trainer_epoch(pmlp_trainer *trainer, const pmlp_data *data,
                                        pmlp_stats *stats);
/* Loss and accuracy on the data with the present weights; changes nothing. Runs through the
   pipeline. */
PMLP_API pmlp_result pmlp_trainer_eval(pmlp_trainer *trainer, const pmlp_data *data,
                                       pmlp_stats *stats);
/* Copies the present weights into the model, so that it can be queried, saved or predicted with. */
PMLP_API pmlp_result pmlp_trainer_sync(pmlp_trainer *trainer);
/* From the next step on. Errors: ARGUMENT if not a finite number >= 0. */
PMLP_API pmlp_result pmlp_trainer_set_learning_rate(pmlp_trainer *trainer, float learning_rate);
/* The gradient of the last step's mean loss, before clipping: dw [n_out][n_in], db [n_out]; either
   may be NULL. Errors: ARGUMENT; STATE before the first step and after one that failed. */
PMLP_API pmlp_result pmlp_trainer_gradient(pmlp_trainer *trainer, int layer, float *dw, float *db);

/* The last failure; result is PMLP_OK if there was none. Valid until the next call. */
PMLP_API const pmlp_error *pmlp_trainer_error(const pmlp_trainer *trainer);
/* The desc with every default resolved; its pointers point into the trainer. */
PMLP_API pmlp_trainer_desc pmlp_trainer_query_desc(const pmlp_trainer *trainer);
/* The schedule that the trainer runs, before lowering; owned by the trainer. */
PMLP_API const pmlp_schedule *pmlp_trainer_schedule(const pmlp_trainer *trainer);

typedef struct pmlp_stage_info {
    int worker;
    int first_layer, layers;
    size_t first_column, columns; /* of its first layer: all, unless that is layer 0, cut inside */
    double cost;                  /* share of the whole network's training arithmetic, 0 .. 1 */
} pmlp_stage_info;

/* What a stage consists of. Errors: ARGUMENT. */
PMLP_API pmlp_result pmlp_trainer_stage(const pmlp_trainer *trainer, int stage,
                                        pmlp_stage_info *info);

/* Cuts a model into `stages` parts such that the costliest is as cheap as possible, counted in
   multiply-adds of F, I and W (the first layer's I is never needed). Boundaries lie between layers
   and, unless whole_layers, inside layer 0. cuts is [stages - 1]: where stages 1, 2, ... begin.
   *balance, which may be NULL, becomes mean / largest cost of a stage: the bound that the cut sets
   on the use of `stages` equal workers. Errors: ARGUMENT; SHAPE if there are fewer places to cut
   than that; MEMORY. */
PMLP_API pmlp_result pmlp_partition(const pmlp_model *model, int stages, bool whole_layers,
                                    pmlp_cut *cuts, double *balance, pmlp_error *error);

typedef struct pmlp_verify_report {
    bool identical;
    int steps;           /* steps trained; the last one, from 1, is where a difference showed */
    const char *what;    /* "loss", "gradient norm", "weight", "bias"; "" if identical */
    int layer;           /* of the first difference; -1 for the loss and the norm */
    size_t row, column;  /* of it: w[row][column], b[row] */
    double pipeline, serial; /* the two values */
    uint64_t hash;       /* the weights word of the pipeline's weights */
} pmlp_verify_report;

/* The promise, tested on your own network: trains two copies of the model from its present weights
   for `steps` steps, one as desc says, one serially (one worker, the whole batch at once, no
   threads, same optimizer and back end), and compares every bit of losses, gradient norm, weights
   and biases after each step. Takes batches in order from data, beginning again at its end. The
   model itself is not changed. Returns PMLP_OK when the comparison was
   made: see report->identical. Errors: those of the trainer. */
PMLP_API pmlp_result pmlp_verify(const pmlp_model *model, const pmlp_trainer_desc *desc,
                                 const pmlp_data *data, int steps, pmlp_verify_report *report,
                                 pmlp_error *error);

/*============================================================================================*/
/* >>images: IDX files                                                                        */
/*============================================================================================*/

/* Images and labels in the format of the MNIST files, unpacked. */
typedef struct pmlp_images {
    size_t rows, height, width;
    float *x;    /* [rows][height * width], 0 .. 1 */
    int *labels; /* [rows], 0 .. 255 */
    pmlp_allocator allocator;
} pmlp_images;

/* Reads an image and a label file; at most `limit` rows if limit > 0. allocator may be NULL. On
   failure *images is all zero and the sentence names the file. Errors: ARGUMENT, FILE, PARSE,
   MEMORY. */
PMLP_API pmlp_result pmlp_images_load(const char *image_path, const char *label_path, size_t limit,
                                      const pmlp_allocator *allocator, pmlp_images *images,
                                      pmlp_error *error);
/* The same from memory. Errors: ARGUMENT, PARSE, MEMORY. */
PMLP_API pmlp_result pmlp_images_parse(const void *image_bytes, size_t image_size,
                                       const void *label_bytes, size_t label_size, size_t limit,
                                       const pmlp_allocator *allocator, pmlp_images *images,
                                       pmlp_error *error);
/* Frees what load or parse has filled in, and nothing else. NULL and all-zero are allowed. */
PMLP_API void pmlp_images_free(pmlp_images *images);

/*============================================================================================*/
/* >>backend: how to plug in other hardware                                                   */
/*                                                                                            */
/* A back end computes a layer's operations; it knows nothing of schedules. The contract:     */
/*  - open() is called once per worker, on the thread that creates the trainer; every other   */
/*    call for that context comes from one thread at a time: the worker's own during a step,  */
/*    the thread that calls the trainer between steps.                                        */
/*  - "buffer" pointers come from the context's own alloc() and may be device memory; pointers*/
/*    marked host are ordinary memory.                                                        */
/*  - work may be asynchronous, in the order of the calls; synchronize() waits for it. Host   */
/*    results (row_loss, row_hit, squares) are read after the next synchronize().             */
/*  - if the edges are `shared`, a boundary's buffer comes from the context below (x) or that */
/*    below (dz), and the context above is given it, too.                                     */
/*  - backward_weight is called with 0 rows if the first micro-batch is empty, and then, not  */
/*    accumulating, makes the gradient 0; no other operation is called without rows.          */
/*  - rows of activations and gradients lie row_floats() apart; a micro-batch is a range of   */
/*    rows, and a call may be given the rows of several neighbouring micro-batches.           */
/*  - for equal bits, each element's sum must not depend on how rows are cut into calls:      */
/*    backward_weight continues its sums in row order.                                        */
/*  - functions return PMLP_OK or an error, never PMLP_BUSY; after an error the trainer stops */
/*    and names stage and op. No entry may be NULL but user and edges.                        */
/*  - the table is not copied: it must outlive the trainer.                                   */
/*============================================================================================*/

#define PMLP_BACKEND_ABI 1

typedef struct pmlp_backend_desc {
    int worker, workers;
    pmlp_allocator allocator; /* for host memory */
} pmlp_backend_desc;

typedef struct pmlp_layer_desc {
    size_t n_in, n_out;
    size_t first_out, row_outs; /* these are outputs first_out .. first_out + n_out - 1 of a layer
                                   that has row_outs; pointers to y and dz are to whole rows */
    pmlp_activation activation; /* of this layer */
    pmlp_activation below;      /* of the layer that feeds it; linear for layer 0 */
    pmlp_optimizer optimizer;   /* decides which moments are needed */
    bool needs_input_gradient;  /* false for layer 0: backward_input is never called */
} pmlp_layer_desc;

typedef enum pmlp_tensor {
    PMLP_TENSOR_PARAMS,
    PMLP_TENSOR_GRADIENTS,
    PMLP_TENSOR_MOMENT1, /* momentum's u, Adam's m */
    PMLP_TENSOR_MOMENT2, /* Adam's v */
    PMLP_TENSOR_COUNT
} pmlp_tensor;

typedef struct pmlp_loss_args {
    pmlp_loss loss;
    size_t rows;
    const float *y;         /* buffer [rows][row_floats(row_outs, activation)] */
    const pmlp_data *data;  /* host: labels or targets */
    const uint32_t *index;  /* host [rows]: which rows of data; NULL: first, first + 1, ... */
    size_t first;           /* used if index is NULL */
    float scale;            /* 1 / rows of the whole batch, a factor of dz */
    float *dz;              /* buffer, as y; NULL: evaluation only */
    double *row_loss;       /* host [rows], this row's loss */
    unsigned char *row_hit; /* host [rows], 1 if the largest output is at the label */
} pmlp_loss_args;

typedef struct pmlp_update_args {
    pmlp_optimizer optimizer;
    float learning_rate, momentum, beta1, beta2, epsilon, weight_decay;
    float gradient_scale; /* from clipping, else 1 */
    uint64_t step;        /* from 1 */
} pmlp_update_args;

struct pmlp_backend {
    uint32_t abi;  /* PMLP_BACKEND_ABI */
    uint32_t size; /* sizeof(pmlp_backend) */
    const char *name;
    const void *user;
    const pmlp_edges *edges; /* hand-off between contexts of this back end in one process; NULL:
                                that of threads, for work that is done when the call returns */

    pmlp_result (*open)(const pmlp_backend *self, const pmlp_backend_desc *desc, void **context,
                        pmlp_error *error);
    void (*close)(void *context);
    pmlp_result (*alloc)(void *context, size_t bytes, void **buffer); /* filled with 0 */
    void (*free)(void *context, void *buffer);
    /* Floats from one row to the next of the outputs of a layer with n outputs, and of their
       gradients. More than n where a back end pads, or keeps z beside y because f' needs it. */
    size_t (*row_floats)(void *context, size_t n, pmlp_activation activation);

    pmlp_result (*layer_create)(void *context, const pmlp_layer_desc *desc, void **layer);
    void (*layer_destroy)(void *context, void *layer);
    /* Host w [n_out][n_in], b [n_out]; either may be NULL. A moment that the optimizer lacks is
       ignored by write and read as 0. */
    pmlp_result (*write)(void *context, void *layer, pmlp_tensor tensor, const float *w,
                         const float *b);
    pmlp_result (*read)(void *context, void *layer, pmlp_tensor tensor, float *w, float *b);

    /* x [rows][row_floats(n, linear)] buffer = rows index[0..rows-1] (NULL: first, first+1, ...) of
       the host's data [..][n]. */
    pmlp_result (*input)(void *context, size_t rows, size_t n, const float *data,
                         const uint32_t *index, size_t first, float *x);
    /* y = f(x W^T + b) */
    pmlp_result (*forward)(void *context, void *layer, size_t rows, const float *x, float *y);
    /* dz_below = (dz W) * f'(x), x being the outputs of the layer below */
    pmlp_result (*backward_input)(void *context, void *layer, size_t rows, const float *dz,
                                  const float *x, float *dz_below);
    /* dW (+)= dz^T x, db (+)= column sums of dz; begins anew unless accumulate */
    pmlp_result (*backward_weight)(void *context, void *layer, size_t rows, const float *x,
                                   const float *dz, bool accumulate);
    pmlp_result (*loss)(void *context, void *layer, const pmlp_loss_args *args);
    /* host squares [n_out]: sum over the row's dW and db, squared, in double, in ascending order */
    pmlp_result (*gradient_squares)(void *context, void *layer, double *squares);
    pmlp_result (*update)(void *context, void *layer, const pmlp_update_args *args);
    pmlp_result (*synchronize)(void *context);
};

/* The CPU, with the best instruction set that this machine has. Static storage. */
PMLP_API const pmlp_backend *pmlp_cpu_backend(void);
/* The CPU with "generic", "sse2", "avx2", "avx512" or "neon"; NULL if this machine or this
   build lacks it. Bits are equal within one instruction set, not across them: some fuse
   multiply and add. */
PMLP_API const pmlp_backend *pmlp_cpu_backend_isa(const char *isa);

/* --- edges: how stages hand over -------------------------------------------------------------
   One edge per stage boundary and direction, a queue of `slots` messages in order of micro-
   batches' sends. send() and receive() never block: they return PMLP_BUSY, the worker does
   something useful or waits, and asks again. Each is called by one thread, the worker at that
   end. wake() may be called from any thread whenever an end that was BUSY may succeed now; an
   edge that never calls it is polled about once a millisecond. Memory behind `data` stays valid
   and unchanged until the end of the step. A message of an empty micro-batch has 0 bytes.
   connect(), reset() and disconnect() are called by the thread that calls the trainer; no
   wake() after disconnect(). The table is not copied: it must outlive the trainer. */

#  define PMLP_EDGES_ABI 1

typedef struct pmlp_edge_desc {
    int from_stage, to_stage, from_worker, to_worker;
    bool gradient;                     /* to_stage == from_stage - 1 */
    int slots;
    size_t row_bytes;                  /* of one row of the message */
    size_t max_rows;                   /* rows of the largest message */
    void *from_context, *to_context;   /* of the back end */
    void (*wake)(void *worker);
    void *from_wake, *to_wake;         /* arguments for wake: the sender's and the receiver's */
    pmlp_allocator allocator;
} pmlp_edge_desc;

struct pmlp_edges {
    uint32_t abi;  /* PMLP_EDGES_ABI */
    uint32_t size; /* sizeof(pmlp_edges) */
    const char *name;
    const void *user;
    bool shared;   /* both ends see one buffer: the same pointer, and nothing is copied */
    pmlp_result (*connect)(const pmlp_edges *self, const pmlp_edge_desc *desc, void **edge,
                           pmlp_error *error);
    void (*disconnect)(void *edge);
    pmlp_result (*reset)(void *edge); /* before each pass; both ends are at rest */
    pmlp_result (*send)(void *edge, int microbatch, const void *data, size_t bytes);
    pmlp_result (*receive)(void *edge, int microbatch, void *data, size_t bytes);
};

/* Between threads of one process: the pointer is handed over, nothing is copied. Static storage. */
PMLP_API const pmlp_edges *pmlp_thread_edges(void);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* PIPEMLP_H */

/*============================================================================================*/
/*                                                                                            */
/*  >>implementation                                                                          */
/*                                                                                            */
/*============================================================================================*/
#if defined(PIPEMLP_IMPLEMENTATION) && !defined(PIPEMLP_IMPLEMENTATION_DONE)
#define PIPEMLP_IMPLEMENTATION_DONE

#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__GNUC__) || defined(__clang__)
#  define PMLP__GNU 1
#  define PMLP__FORMAT(f, a) __attribute__((format(printf, f, a)))
#else
#  define PMLP__GNU 0
#  define PMLP__FORMAT(f, a)
#endif

/*============================================================================================*/
/* >>platform: threads, atomics, clock                                                        */
/*                                                                                            */
/* One small function per primitive and system; no system's name appears after this section.  */
/*============================================================================================*/

/* --- atomics: an int, sequentially consistent, because sleeping and waking rely on one order -- */

#if PMLP__GNU
typedef struct { int v; } pmlp__atomic;
static int pmlp__load(pmlp__atomic *a) { return __atomic_load_n(&a->v, __ATOMIC_SEQ_CST); }
static void pmlp__store(pmlp__atomic *a, int v) { __atomic_store_n(&a->v, v, __ATOMIC_SEQ_CST); }
static int pmlp__add(pmlp__atomic *a, int v) {
    return __atomic_fetch_add(&a->v, v, __ATOMIC_SEQ_CST);
}
static int pmlp__exchange(pmlp__atomic *a, int v) {
    return __atomic_exchange_n(&a->v, v, __ATOMIC_SEQ_CST);
}
#elif defined(_MSC_VER)
#include <intrin.h>
typedef struct { volatile long v; } pmlp__atomic;
static int pmlp__load(pmlp__atomic *a) { return (int)_InterlockedOr(&a->v, 0); }
static void pmlp__store(pmlp__atomic *a, int v) { (void)_InterlockedExchange(&a->v, (long)v); }
static int pmlp__add(pmlp__atomic *a, int v) {
    return (int)_InterlockedExchangeAdd(&a->v, (long)v);
}
static int pmlp__exchange(pmlp__atomic *a, int v) {
    return (int)_InterlockedExchange(&a->v, (long)v);
}
#else
#error "pipemlp.h needs the atomics of gcc, clang or MSVC"
#endif

static void pmlp__pause(void) {
#if PMLP__GNU && (defined(__x86_64__) || defined(__i386__))
    __builtin_ia32_pause();
#elif PMLP__GNU && defined(__aarch64__)
    __asm__ volatile("yield");
#elif defined(_MSC_VER) && (defined(_M_X64) || defined(_M_IX86))
    _mm_pause();
#elif defined(_MSC_VER)
    __yield();
#endif
}

/* --- threads ---------------------------------------------------------------------------------- */

typedef struct pmlp__thread_start {
    void (*run)(void *argument);
    void *argument;
} pmlp__thread_start;

#ifdef _WIN32
#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#include <windows.h>

typedef CRITICAL_SECTION pmlp__mutex;
typedef CONDITION_VARIABLE pmlp__cond;
typedef HANDLE pmlp__thread;

static bool pmlp__mutex_init(pmlp__mutex *m) { InitializeCriticalSection(m); return true; }
static void pmlp__mutex_done(pmlp__mutex *m) { DeleteCriticalSection(m); }
static void pmlp__mutex_lock(pmlp__mutex *m) { EnterCriticalSection(m); }
static void pmlp__mutex_unlock(pmlp__mutex *m) { LeaveCriticalSection(m); }
static bool pmlp__cond_init(pmlp__cond *c) { InitializeConditionVariable(c); return true; }
static void pmlp__cond_done(pmlp__cond *c) { (void)c; }
static void pmlp__cond_wait(pmlp__cond *c, pmlp__mutex *m) {
    SleepConditionVariableCS(c, m, INFINITE);
}
static void pmlp__cond_wait_1ms(pmlp__cond *c, pmlp__mutex *m) {
    SleepConditionVariableCS(c, m, 1);
}
static void pmlp__cond_signal(pmlp__cond *c) { WakeConditionVariable(c); }

static DWORD WINAPI pmlp__thread_main(LPVOID p) {
    pmlp__thread_start *start = (pmlp__thread_start *)p;
    start->run(start->argument);
    return 0;
}
static bool pmlp__thread_create(pmlp__thread *t, pmlp__thread_start *start) {
    *t = CreateThread(NULL, 0, pmlp__thread_main, start, 0, NULL);
    return *t != NULL;
}
static void pmlp__thread_join(pmlp__thread t) {
    WaitForSingleObject(t, INFINITE);
    CloseHandle(t);
}
static void pmlp__yield(void) { SwitchToThread(); }
static double pmlp__clock(void) {
    LARGE_INTEGER ticks, per_second;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&per_second);
    return (double)ticks.QuadPart / (double)per_second.QuadPart;
}
static int pmlp__cores(void) {
    SYSTEM_INFO info;
    GetSystemInfo(&info);
    return (int)info.dwNumberOfProcessors;
}

#else
#include <pthread.h>
#include <sched.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

typedef pthread_mutex_t pmlp__mutex;
typedef pthread_cond_t pmlp__cond;
typedef pthread_t pmlp__thread;

static bool pmlp__mutex_init(pmlp__mutex *m) { return pthread_mutex_init(m, NULL) == 0; }
static void pmlp__mutex_done(pmlp__mutex *m) { pthread_mutex_destroy(m); }
static void pmlp__mutex_lock(pmlp__mutex *m) { pthread_mutex_lock(m); }
static void pmlp__mutex_unlock(pmlp__mutex *m) { pthread_mutex_unlock(m); }
static bool pmlp__cond_init(pmlp__cond *c) { return pthread_cond_init(c, NULL) == 0; }
static void pmlp__cond_done(pmlp__cond *c) { pthread_cond_destroy(c); }
static void pmlp__cond_wait(pmlp__cond *c, pmlp__mutex *m) { pthread_cond_wait(c, m); }
/* On the wall clock, the only one that strict C99 lets us name here. If somebody sets that clock
   back, one wait lasts longer than a millisecond; the edges of this file do not rely on the
   time-out. */
static void pmlp__cond_wait_1ms(pmlp__cond *c, pmlp__mutex *m) {
    struct timeval now;
    struct timespec until;
    gettimeofday(&now, NULL);
    until.tv_sec = now.tv_sec;
    until.tv_nsec = now.tv_usec * 1000L + 1000000L;
    if (until.tv_nsec >= 1000000000L) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000L;
    }
    pthread_cond_timedwait(c, m, &until);
}
static void pmlp__cond_signal(pmlp__cond *c) { pthread_cond_signal(c); }

static void *pmlp__thread_main(void *p) {
    pmlp__thread_start *start = (pmlp__thread_start *)p;
    start->run(start->argument);
    return NULL;
}
static bool pmlp__thread_create(pmlp__thread *t, pmlp__thread_start *start) {
    return pthread_create(t, NULL, pmlp__thread_main, start) == 0;
}
static void pmlp__thread_join(pmlp__thread t) { pthread_join(t, NULL); }
static void pmlp__yield(void) { sched_yield(); }
static double pmlp__clock(void) {
#ifdef CLOCK_MONOTONIC
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
#else
    struct timeval now;
    gettimeofday(&now, NULL);
    return (double)now.tv_sec + 1e-6 * (double)now.tv_usec;
#endif
}
static int pmlp__cores(void) {
#ifdef _SC_NPROCESSORS_ONLN
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n > INT_MAX ? INT_MAX : (int)n;
#else
    return 1;
#endif
}
#endif

/*============================================================================================*/
/* >>memory, errors, log, random numbers                                                      */
/*============================================================================================*/

#define PMLP__ALIGN 64 /* a cache line, and the widest vector */

static bool pmlp__mul_overflows(size_t a, size_t b) { return b != 0 && a > SIZE_MAX / b; }

/* count * size bytes, zeroed, aligned; NULL if there is no memory or the product overflows. */
static void *pmlp__new(const pmlp_allocator *allocator, size_t count, size_t size) {
    const size_t extra = PMLP__ALIGN + sizeof(void *);
    unsigned char *raw, *aligned;
    if (pmlp__mul_overflows(count, size) || count * size > SIZE_MAX - extra) return NULL;
    if (allocator->alloc)
        raw = (unsigned char *)allocator->alloc(count * size + extra, allocator->user);
    else raw = (unsigned char *)malloc(count * size + extra);
    if (!raw) return NULL;
    aligned = raw + extra - (size_t)((uintptr_t)(raw + extra) % PMLP__ALIGN);
    memcpy(aligned - sizeof(void *), &raw, sizeof(void *));
    memset(aligned, 0, count * size);
    return aligned;
}

static void pmlp__delete(const pmlp_allocator *allocator, void *pointer) {
    void *raw;
    if (!pointer) return;
    memcpy(&raw, (unsigned char *)pointer - sizeof(void *), sizeof(void *));
    if (allocator->free) allocator->free(raw, allocator->user);
    else free(raw);
}

/* Memory that could not go back where it came from. */
static bool pmlp__is_half(const pmlp_allocator *allocator) {
    return (allocator->alloc == NULL) != (allocator->free == NULL);
}

static pmlp_allocator pmlp__allocator_or_default(const pmlp_allocator *allocator) {
    pmlp_allocator standard;
    memset(&standard, 0, sizeof standard);
    return allocator ? *allocator : standard;
}

PMLP_API const char *pmlp_result_name(pmlp_result result) {
    switch (result) {
#define PMLP__RESULT_NAME(name, text) case name: return #name;
        PMLP_RESULTS(PMLP__RESULT_NAME)
#undef PMLP__RESULT_NAME
    default: return "PMLP_?";
    }
}

PMLP_API const char *pmlp_result_text(pmlp_result result) {
    switch (result) {
#define PMLP__RESULT_TEXT(name, text) case name: return text;
        PMLP_RESULTS(PMLP__RESULT_TEXT)
#undef PMLP__RESULT_TEXT
    default: return "not a result of this library";
    }
}

static void pmlp__error_clear(pmlp_error *error) {
    memset(error, 0, sizeof *error);
    error->worker = error->stage = error->microbatch = -1;
}

static pmlp_result pmlp__fail(pmlp_error *error, pmlp_result result, const char *format, ...)
    PMLP__FORMAT(3, 4);
static pmlp_result pmlp__fail(pmlp_error *error, pmlp_result result, const char *format, ...) {
    if (error) {
        va_list arguments;
        pmlp__error_clear(error);
        error->result = result;
        va_start(arguments, format);
        vsnprintf(error->text, sizeof error->text, format, arguments);
        va_end(arguments);
    }
    return result;
}

static pmlp_result pmlp__no_memory(pmlp_error *error, const char *what) {
    return pmlp__fail(error, PMLP_ERROR_MEMORY, "out of memory for %s", what);
}

/* Adds the place in the pipeline to an error that has its text. */
static void pmlp__error_place(pmlp_error *error, int worker, pmlp_action action) {
    if (!error) return;
    error->worker = worker;
    error->stage = action.stage;
    error->microbatch = action.microbatch;
    snprintf(error->op, sizeof error->op, "%s", pmlp_op_name(action.op));
}

static void pmlp__log(const pmlp_logger *logger, pmlp_log_level level, const char *format, ...)
    PMLP__FORMAT(3, 4);
static void pmlp__log(const pmlp_logger *logger, pmlp_log_level level, const char *format, ...) {
    char text[512];
    va_list arguments;
    if (!logger->log) return;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    logger->log(level, text, logger->user);
}

PMLP_API void pmlp_log_stderr(pmlp_log_level level, const char *text, void *user) {
    static const char *const names[] = {"error", "warning", "info"};
    (void)user;
    fprintf(stderr, "pipemlp: %s: %s\n",
            level >= PMLP_LOG_ERROR && level <= PMLP_LOG_INFO ? names[level] : "?", text);
}

PMLP_API uint64_t pmlp_hash(uint64_t hash, const void *bytes, size_t size) {
    const unsigned char *p = (const unsigned char *)bytes;
    if (hash == 0) hash = 14695981039346656037u;
    for (; size > 0; size--) hash = (hash ^ *p++) * 1099511628211u;
    return hash;
}

/* Text into a caller's buffer as snprintf would: counts on past its end. */
typedef struct pmlp__text {
    char *buffer;
    size_t size, length;
} pmlp__text;

static void pmlp__put(pmlp__text *text, const char *format, ...) PMLP__FORMAT(2, 3);
static void pmlp__put(pmlp__text *text, const char *format, ...) {
    char piece[64];
    va_list arguments;
    int n, i;
    va_start(arguments, format);
    n = vsnprintf(piece, sizeof piece, format, arguments);
    va_end(arguments);
    for (i = 0; i < n && i < (int)sizeof piece - 1; i++, text->length++)
        if (text->length + 1 < text->size) text->buffer[text->length] = piece[i];
}

static void pmlp__text_end(pmlp__text *text, size_t *length) {
    if (text->size > 0)
        text->buffer[text->length < text->size ? text->length : text->size - 1] = '\0';
    if (length) *length = text->length;
}

/* Philox4x32-10 (Salmon et al., 2011): the random numbers at place (counter, stream) of a key. No
   state: what a number is depends on what it is for, never on who asks or in which order. */
static void pmlp__philox(uint64_t key, uint64_t counter, uint64_t stream, uint32_t out[4]) {
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    uint32_t c0 = (uint32_t)counter, c1 = (uint32_t)(counter >> 32);
    uint32_t c2 = (uint32_t)stream, c3 = (uint32_t)(stream >> 32);
    int round;
    for (round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0; out[1] = c1; out[2] = c2; out[3] = c3;
}

/* What a stream of random numbers is for; the low half of a stream's number is the layer or
   epoch. */
#define PMLP__STREAM_WEIGHTS ((uint64_t)1 << 32)
#define PMLP__STREAM_SHUFFLE ((uint64_t)2 << 32)

/* Fisher and Yates; n < 2^32 */
static void pmlp__shuffle(uint64_t seed, uint64_t epoch, uint32_t *index, size_t n) {
    size_t i;
    for (i = 0; i < n; i++) index[i] = (uint32_t)i;
    for (i = n; i > 1; i--) {
        uint32_t random[4], t;
        size_t j;
        pmlp__philox(seed, i, PMLP__STREAM_SHUFFLE + (epoch & 0xFFFFFFFFu), random);
        j = (size_t)(((uint64_t)random[0] * i) >> 32);
        t = index[i - 1];
        index[i - 1] = index[j];
        index[j] = t;
    }
}

/* --- names ------------------------------------------------------------------------------------ */

static const char *pmlp__name(const char *const *names, int count, int value) {
    return value >= 0 && value < count ? names[value] : "?";
}

PMLP_API const char *pmlp_activation_name(pmlp_activation activation) {
    static const char *const names[] = {"default", "relu", "sigmoid", "tanh", "gelu", "linear"};
    return pmlp__name(names, PMLP_ACTIVATION_COUNT, (int)activation);
}

PMLP_API const char *pmlp_loss_name(pmlp_loss loss) {
    static const char *const names[] = {"default", "xent", "mse"};
    return pmlp__name(names, PMLP_LOSS_COUNT, (int)loss);
}

PMLP_API const char *pmlp_op_name(pmlp_op op) {
    static const char *const names[] = {"?", "F", "I", "W", "B", "U",
                                        "SEND_F", "RECV_F", "SEND_B", "RECV_B"};
    return pmlp__name(names, PMLP_OP_COUNT, (int)op);
}

PMLP_API const char *pmlp_schedule_kind_name(pmlp_schedule_kind kind) {
    static const char *const names[] = {"default", "sequential", "gpipe", "1f1b"};
    return pmlp__name(names, PMLP_SCHEDULE_KIND_COUNT, (int)kind);
}

PMLP_API const char *pmlp_optimizer_name(pmlp_optimizer optimizer) {
    static const char *const names[] = {"default", "sgd", "momentum", "nesterov", "adam", "adamw"};
    return pmlp__name(names, PMLP_OPTIMIZER_COUNT, (int)optimizer);
}

/*============================================================================================*/
/* >>kernels: what the CPU computes                                                           */
/*                                                                                            */
/* Equal bits by construction. In a matrix product each element of the result is ONE chain of */
/* multiply-adds over k in ascending order; tiles, blocks and calls only cut that chain into  */
/* pieces that are stored and loaded in between, which changes nothing. Every tile shape runs */
/* the same chain. Whether a multiply-add rounds once (fused) or twice is fixed per           */
/* instruction set by naming the instruction, so no compiler option can decide it. Elsewhere  */
/* products are products of two floats taken in double, which are exact, so that a compiler   */
/* that fuses them with a sum computes the same.                                              */
/*============================================================================================*/

/* c [M][width] (row stride c_row) = or += sum over k of a(i, k) p[k][width], where a(i, k) lies at
   a[i * a_row + k * a_k] and p is a packed panel. */
typedef void (*pmlp__tile_fn)(size_t k, const float *a, size_t a_row, size_t a_k, const float *p,
                              float *c, size_t c_row, bool accumulate);

typedef struct pmlp__tile {
    size_t rows;
    pmlp__tile_fn run;
} pmlp__tile;

typedef void (*pmlp__update_fn)(const pmlp_update_args *u, float decay, size_t n, float *w,
                                const float *g, float *m1, float *m2);

/* An instruction set: the panel width it likes and tiles of several heights, tallest first, the
   last of height 1. */
typedef struct pmlp__isa {
    const char *name;
    size_t width;
    const pmlp__tile *tiles;
    pmlp__update_fn update;
} pmlp__isa;

#if PMLP__GNU
#  define PMLP__INLINE static inline __attribute__((always_inline))
#  define PMLP__RESTRICT __restrict
#else
#  define PMLP__INLINE static
#  define PMLP__RESTRICT
#endif

/* --- optimizers ------------------------------------------------------------------------------- */

/* One parameter tensor of n floats: w, its gradient g, and the moments that the optimizer has.
   Doubles hold floats or exact products of two floats until the one rounding that is meant. Written
   once, compiled for each instruction set. */
PMLP__INLINE void pmlp__update(const pmlp_update_args *u, float decay, size_t n,
                               float *PMLP__RESTRICT w, const float *PMLP__RESTRICT g,
                               float *PMLP__RESTRICT m1, float *PMLP__RESTRICT m2) {
    const bool apart = u->optimizer == PMLP_ADAMW; /* decay apart from the gradient */
    const double lr = (double)u->learning_rate, mu = (double)u->momentum;
    const double scale = (double)u->gradient_scale, l2 = apart ? 0.0 : (double)decay;
    const double b1 = (double)u->beta1, b2 = (double)u->beta2, eps = (double)u->epsilon;
    const double fix1 = 1.0 - pow(b1, (double)u->step), fix2 = 1.0 - pow(b2, (double)u->step);
    const double keep = apart ? (double)(float)(1.0 - lr * (double)decay) : 1.0, rate = lr / fix1;
    size_t i;
#define PMLP__GRADIENT (float)((double)(float)(scale * (double)g[i]) + l2 * (double)w[i])
    switch (u->optimizer) {
    case PMLP_MOMENTUM:
        for (i = 0; i < n; i++) {
            const float d = PMLP__GRADIENT;
            m1[i] = (float)(mu * (double)m1[i] + (double)d);
            w[i] = (float)((double)w[i] - lr * (double)m1[i]);
        }
        break;
    case PMLP_NESTEROV:
        for (i = 0; i < n; i++) {
            const float d = PMLP__GRADIENT;
            m1[i] = (float)(mu * (double)m1[i] + (double)d);
            w[i] = (float)((double)w[i] - lr * (double)(float)((double)d + mu * (double)m1[i]));
        }
        break;
    case PMLP_ADAM:
    case PMLP_ADAMW:
        for (i = 0; i < n; i++) {
            const float d = PMLP__GRADIENT;
            const float d1 = (float)((1.0 - b1) * (double)d);
            const float d2 = (float)((1.0 - b2) * ((double)d * (double)d));
            m1[i] = (float)(b1 * (double)m1[i] + (double)d1);
            m2[i] = (float)(b2 * (double)m2[i] + (double)d2);
            w[i] = (float)(keep * (double)w[i] -
                           rate * (double)m1[i] / (sqrt((double)m2[i] / fix2) + eps));
        }
        break;
    default:
        for (i = 0; i < n; i++) {
            const float d = PMLP__GRADIENT;
            w[i] = (float)((double)w[i] - lr * (double)d);
        }
    }
#undef PMLP__GRADIENT
}

#  define PMLP__DEFINE_UPDATE(NAME, TARGET)                                                      \
    TARGET static void NAME(const pmlp_update_args *u, float decay, size_t n, float *w,        \
                            const float *g, float *m1, float *m2) {                            \
        pmlp__update(u, decay, n, w, g, m1, m2);                                               \
    }

#if defined(__clang__)
#  define PMLP__UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#  define PMLP__UNROLL _Pragma("GCC unroll 32")
#endif

/* The register tile: M rows by NV vectors of LANES floats of the result stay in registers while k
   runs; each step loads one row of the panel (NV vectors) and, for each of the M rows, one number
   of a that is spread over a vector:

        p[k]      [ b0 ........ b31 ]          one row of the panel, loaded once
        a(0, k)   s0 += a(0, k) * b            M multiply-adds per vector loaded: the more rows, the
        a(1, k)   s1 += a(1, k) * b            less memory traffic per arithmetic, until the
        ...                                    registers run out

   A macro, because C has no templates: the same loop for each instruction set and height. Reading
   and writing c at both ends is what lets a sum be cut into pieces without changing its bits. */
#define PMLP__DEFINE_TILE(NAME, TARGET, VEC, LANES, NV, M, ZERO, LOAD, STORE, SPLAT, MADD)     \
    TARGET static void NAME(size_t k, const float *a, size_t a_row, size_t a_k, const float *p, \
                            float *c, size_t c_row, bool accumulate) {                         \
        VEC s[M][NV];                                                                          \
        int i, j;                                                                              \
        PMLP__UNROLL for (i = 0; i < M; i++) {                                                 \
            PMLP__UNROLL for (j = 0; j < NV; j++)                                              \
                s[i][j] = accumulate ? LOAD(c + (size_t)i * c_row + j * LANES) : ZERO();       \
        }                                                                                      \
        for (; k > 0; k--, a += a_k, p += NV * LANES) {                                        \
            VEC b[NV];                                                                         \
            PMLP__UNROLL for (j = 0; j < NV; j++) b[j] = LOAD(p + j * LANES);                  \
            PMLP__UNROLL for (i = 0; i < M; i++) {                                             \
                const VEC x = SPLAT(a[(size_t)i * a_row]);                                     \
                PMLP__UNROLL for (j = 0; j < NV; j++) s[i][j] = MADD(x, b[j], s[i][j]);        \
            }                                                                                  \
        }                                                                                      \
        PMLP__UNROLL for (i = 0; i < M; i++) {                                                 \
            PMLP__UNROLL for (j = 0; j < NV; j++)                                              \
                STORE(c + (size_t)i * c_row + j * LANES, s[i][j]);                             \
        }                                                                                      \
    }

/* --- plain C: one row of 8; exact products in double keep it independent of fusing ------------ */

static void pmlp__tile_generic(size_t k, const float *a, size_t a_row, size_t a_k, const float *p,
                               float *c, size_t c_row, bool accumulate) {
    float s[8];
    int j;
    (void)a_row;
    (void)c_row;
    for (j = 0; j < 8; j++) s[j] = accumulate ? c[j] : 0.0f;
    for (; k > 0; k--, a += a_k, p += 8)
        for (j = 0; j < 8; j++) s[j] = (float)((double)s[j] + (double)*a * (double)p[j]);
    for (j = 0; j < 8; j++) c[j] = s[j];
}
static const pmlp__tile pmlp__tiles_generic[] = {{1, pmlp__tile_generic}};
PMLP__DEFINE_UPDATE(pmlp__update_generic, )
static const pmlp__isa pmlp__isa_generic = {"generic", 8, pmlp__tiles_generic,
                                            pmlp__update_generic};

/* --- x86 -------------------------------------------------------------------------------------- */

#if PMLP__GNU && (defined(__x86_64__) || (defined(__i386__) && defined(__SSE2__)))
#define PMLP__X86 1
#include <immintrin.h>

/* SSE2 cannot fuse. The empty asm takes the product into a register of its own, so that a compiler
   told to use newer instructions does not fuse it after all. */
static inline __m128 pmlp__sse2_madd(__m128 a, __m128 b, __m128 c) {
    __m128 product = _mm_mul_ps(a, b);
    __asm__("" : "+x"(product));
    return _mm_add_ps(product, c);
}
#define PMLP__SSE2_TILE(NAME, M)                                                               \
    PMLP__DEFINE_TILE(NAME, , __m128, 4, 2, M, _mm_setzero_ps, _mm_loadu_ps, _mm_storeu_ps,    \
                      _mm_set1_ps, pmlp__sse2_madd)
PMLP__SSE2_TILE(pmlp__tile_sse2_6, 6)
PMLP__SSE2_TILE(pmlp__tile_sse2_4, 4)
PMLP__SSE2_TILE(pmlp__tile_sse2_2, 2)
PMLP__SSE2_TILE(pmlp__tile_sse2_1, 1)
static const pmlp__tile pmlp__tiles_sse2[] = {
    {6, pmlp__tile_sse2_6}, {4, pmlp__tile_sse2_4}, {2, pmlp__tile_sse2_2}, {1, pmlp__tile_sse2_1}};
PMLP__DEFINE_UPDATE(pmlp__update_sse2, )
static const pmlp__isa pmlp__isa_sse2 = {"sse2", 8, pmlp__tiles_sse2, pmlp__update_sse2};

#define PMLP__AVX2_TILE(NAME, M)                                                               \
    PMLP__DEFINE_TILE(NAME, __attribute__((target("avx2,fma"))), __m256, 8, 2, M,              \
                      _mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps,    \
                      _mm256_fmadd_ps)
PMLP__AVX2_TILE(pmlp__tile_avx2_6, 6)
PMLP__AVX2_TILE(pmlp__tile_avx2_4, 4)
PMLP__AVX2_TILE(pmlp__tile_avx2_2, 2)
PMLP__AVX2_TILE(pmlp__tile_avx2_1, 1)
static const pmlp__tile pmlp__tiles_avx2[] = {
    {6, pmlp__tile_avx2_6}, {4, pmlp__tile_avx2_4}, {2, pmlp__tile_avx2_2}, {1, pmlp__tile_avx2_1}};
PMLP__DEFINE_UPDATE(pmlp__update_avx2, __attribute__((target("avx2,fma"))))
static const pmlp__isa pmlp__isa_avx2 = {"avx2", 16, pmlp__tiles_avx2, pmlp__update_avx2};

#define PMLP__AVX512_TILE(NAME, M)                                                             \
    PMLP__DEFINE_TILE(NAME, __attribute__((target("avx512f"))), __m512, 16, 2, M,              \
                      _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps,    \
                      _mm512_fmadd_ps)
PMLP__AVX512_TILE(pmlp__tile_avx512_12, 12)
PMLP__AVX512_TILE(pmlp__tile_avx512_8, 8)
PMLP__AVX512_TILE(pmlp__tile_avx512_4, 4)
PMLP__AVX512_TILE(pmlp__tile_avx512_2, 2)
PMLP__AVX512_TILE(pmlp__tile_avx512_1, 1)
static const pmlp__tile pmlp__tiles_avx512[] = {{12, pmlp__tile_avx512_12},
                                                {8, pmlp__tile_avx512_8},
                                                {4, pmlp__tile_avx512_4},
                                                {2, pmlp__tile_avx512_2},
                                                {1, pmlp__tile_avx512_1}};
PMLP__DEFINE_UPDATE(pmlp__update_avx512, __attribute__((target("avx512f"))))
static const pmlp__isa pmlp__isa_avx512 = {"avx512", 32, pmlp__tiles_avx512, pmlp__update_avx512};
#else
#define PMLP__X86 0
#endif

/* --- 64-bit Arm ------------------------------------------------------------------------------- */

#if PMLP__GNU && defined(__aarch64__) && defined(__ARM_NEON)
#define PMLP__NEON 1
#include <arm_neon.h>
static inline float32x4_t pmlp__neon_zero(void) { return vdupq_n_f32(0.0f); }
static inline float32x4_t pmlp__neon_madd(float32x4_t a, float32x4_t b, float32x4_t c) {
    return vfmaq_f32(c, a, b);
}
#define PMLP__NEON_TILE(NAME, M)                                                               \
    PMLP__DEFINE_TILE(NAME, , float32x4_t, 4, 2, M, pmlp__neon_zero, vld1q_f32, vst1q_f32,     \
                      vdupq_n_f32, pmlp__neon_madd)
PMLP__NEON_TILE(pmlp__tile_neon_8, 8)
PMLP__NEON_TILE(pmlp__tile_neon_4, 4)
PMLP__NEON_TILE(pmlp__tile_neon_2, 2)
PMLP__NEON_TILE(pmlp__tile_neon_1, 1)
static const pmlp__tile pmlp__tiles_neon[] = {
    {8, pmlp__tile_neon_8}, {4, pmlp__tile_neon_4}, {2, pmlp__tile_neon_2}, {1, pmlp__tile_neon_1}};
PMLP__DEFINE_UPDATE(pmlp__update_neon, )
static const pmlp__isa pmlp__isa_neon = {"neon", 8, pmlp__tiles_neon, pmlp__update_neon};
#else
#define PMLP__NEON 0
#endif

/* --- matrix products -------------------------------------------------------------------------- */

#define PMLP__MAX_WIDTH 32 /* the widest panel of any instruction set */
#define PMLP__K_BLOCK 256  /* rows of a panel that stay in the innermost cache */

/* Three products make a layer, with B rows of a batch:

        forward   y  [B][n_out]     = x  [B][n_in]      W^T   sum over the inputs
        I         dx [B][n_in]      = dz [B][n_out]     W     sum over the outputs
        W         dW [n_out][n_in] += dz^T [n_out][B]   x     sum over the rows

   The right-hand factor is cut into panels of `width` columns, stored one row of the panel behind
   the other, so that the innermost loop reads memory in order. The rest is loops around it. */
/* One panel: c [m][width] (+)= a [m][k] p [k][width] */
static void pmlp__gemm_panel(const pmlp__isa *isa, size_t m, size_t k, const float *a, size_t a_row,
                             size_t a_k, const float *p, float *c, size_t c_row, bool accumulate) {
    const pmlp__tile *tile = isa->tiles;
    size_t i = 0;
    while (i < m) {
        while (tile->rows > m - i) tile++;
        tile->run(k, a + i * a_row, a_row, a_k, p, c + i * c_row, c_row, accumulate);
        i += tile->rows;
    }
}

/* One panel with k in blocks; k may be 0, which makes c zero unless it accumulates. */
static void pmlp__gemm_blocks(const pmlp__isa *isa, size_t m, size_t k, const float *a,
                              size_t a_row, const float *p, float *c, size_t c_row) {
    size_t done = 0;
    do {
        size_t n = k - done < PMLP__K_BLOCK ? k - done : PMLP__K_BLOCK;
        pmlp__gemm_panel(isa, m, n, a + done, a_row, 1, p + done * isa->width, c, c_row, done > 0);
        done += n;
    } while (done < k);
}

/* --- activations ------------------------------------------------------------------------------ */

static float pmlp__sigmoid(float z) { return 1.0f / (1.0f + expf(-z)); }

/* Phi(z), the normal distribution function */
static double pmlp__phi(float z) { return 0.5 * erfc(-(double)z * 0.70710678118654752440); }

static float pmlp__gelu(float z) { return (float)((double)z * (double)(float)pmlp__phi(z)); }

static float pmlp__gelu_slope(float z) {
    const double density = 0.39894228040143267794 * exp(-0.5 * (double)z * (double)z);
    const float phi = (float)pmlp__phi(z), bend = (float)((double)z * density);
    return phi + bend;
}

/* Derivatives are computed from what is kept anyway: of ReLU, sigmoid and tanh from the output y,
   so that z need not be stored. */
/* y [rows][n] (row stride `row`) holds W x; becomes f(W x + b). GELU keeps z, `keep` floats
   further. */
static void pmlp__activate(pmlp_activation f, size_t rows, size_t n, const float *b, float *y,
                           size_t row, size_t keep) {
    size_t i, j;
    for (i = 0; i < rows; i++, y += row) {
        for (j = 0; j < n; j++) y[j] += b[j];
        switch (f) {
        case PMLP_RELU: /* written so that a NaN stays a NaN */
            for (j = 0; j < n; j++) y[j] = y[j] < 0.0f ? 0.0f : y[j];
            break;
        case PMLP_SIGMOID:
            for (j = 0; j < n; j++) y[j] = pmlp__sigmoid(y[j]);
            break;
        case PMLP_TANH:
            for (j = 0; j < n; j++) y[j] = tanhf(y[j]);
            break;
        case PMLP_GELU:
            memcpy(y + keep, y, n * sizeof *y);
            for (j = 0; j < n; j++) y[j] = pmlp__gelu(y[j]);
            break;
        default: break;
        }
    }
}

/* d [rows][n] *= f'(z), computed from the outputs y, and for GELU from the z kept beside them. d
   and y have the same row stride. */
static void pmlp__derive(pmlp_activation f, size_t rows, size_t n, const float *y, size_t row,
                         size_t keep, float *d) {
    size_t i, j;
    for (i = 0; i < rows; i++, y += row, d += row) {
        switch (f) {
        case PMLP_RELU:
            for (j = 0; j < n; j++) d[j] = y[j] > 0.0f ? d[j] : 0.0f;
            break;
        case PMLP_SIGMOID:
            for (j = 0; j < n; j++) d[j] = d[j] * (y[j] * (1.0f - y[j]));
            break;
        case PMLP_TANH:
            for (j = 0; j < n; j++) d[j] = d[j] * (float)(1.0 - (double)y[j] * (double)y[j]);
            break;
        case PMLP_GELU:
            for (j = 0; j < n; j++) d[j] = d[j] * pmlp__gelu_slope(y[keep + j]);
            break;
        default: break;
        }
    }
}

/* --- losses ----------------------------------------------------------------------------------- */

static size_t pmlp__argmax(const float *y, size_t n) {
    size_t best = 0, j;
    for (j = 1; j < n; j++)
        if (y[j] > y[best]) best = j;
    return best;
}

/* Loss and gradient of one row at a time. With p = softmax(y) and t the one-hot row of the label:

        cross-entropy   loss = -log p[label] = log sum e^(y - max) - (y[label] - max),   dy = p - t
        squared error   loss = sum 1/2 (y - t)^2,                                        dy = y - t

   dy is divided by the rows of the whole batch here (`scale`), so that everything that follows, for
   whatever micro-batch, is already a part of the gradient of the batch's mean. */
/* Softmax of one row into p, which may be y; returns log sum e^(y - max). The row's own maximum is
   subtracted: one of the whole matrix would make bits depend on the micro-batch. */
static double pmlp__softmax(const float *y, size_t n, float *p, float *max) {
    double sum = 0.0;
    size_t j;
    *max = y[pmlp__argmax(y, n)];
    for (j = 0; j < n; j++) {
        p[j] = expf(y[j] - *max);
        sum += (double)p[j];
    }
    for (j = 0; j < n; j++) p[j] = (float)((double)p[j] / sum);
    return log(sum);
}

/* Cross-entropy of one row; d, which gets (softmax(y) - onehot) * scale, is scratch as well. */
static double pmlp__xent_row(const float *y, size_t n, size_t label, float scale, float *d) {
    float max;
    double log_sum = pmlp__softmax(y, n, d, &max);
    size_t j;
    d[label] -= 1.0f;
    for (j = 0; j < n; j++) d[j] *= scale;
    return log_sum - ((double)y[label] - (double)max);
}

/* Half the squared distance of one row from `target` [n], or from the one-hot row of `label` if
   target is NULL; d gets (y - target) * scale. */
static double pmlp__mse_row(const float *y, size_t n, const float *target, size_t label,
                            float scale, float *d) {
    double loss = 0.0;
    size_t j;
    for (j = 0; j < n; j++) {
        const float t = target ? target[j] : j == label ? 1.0f : 0.0f;
        const float e = y[j] - t;
        loss += 0.5 * (double)e * (double)e;
        d[j] = e * scale;
    }
    return loss;
}

/*============================================================================================*/
/* >>cpu-backend                                                                              */
/*                                                                                            */
/* Weights live in panels: [n_out / width][n_in][width], so that forward reads them in the    */
/* order in which it needs them and dW is accumulated in the same shape. backward_input needs */
/* the transpose, in panels over n_in; it is packed once after each update.                   */
/*============================================================================================*/

typedef struct pmlp__cpu {
    const pmlp__isa *isa;
    pmlp_allocator allocator;
    float *pack; /* [K_BLOCK][width] */
} pmlp__cpu;

typedef struct pmlp__cpu_layer {
    pmlp_layer_desc desc;
    size_t pad_out, count;                  /* n_out rounded up to the width; floats of w */
    float *w[PMLP_TENSOR_COUNT];            /* [pad_out / width][n_in][width]; NULL if not needed */
    float *b[PMLP_TENSOR_COUNT];            /* [pad_out] */
    float *transposed;                      /* [pad_in / width][n_out][width]; NULL for layer 0 */
    float *scratch;                         /* [row_outs], for the loss without a gradient */
    bool transposed_is_current;
} pmlp__cpu_layer;

static size_t pmlp__pad(size_t n, size_t width) { return (n + width - 1) / width * width; }

static pmlp_result pmlp__cpu_open(const pmlp_backend *self, const pmlp_backend_desc *desc,
                                  void **context, pmlp_error *error) {
    pmlp__cpu *cpu = (pmlp__cpu *)pmlp__new(&desc->allocator, 1, sizeof *cpu);
    if (!cpu) return pmlp__no_memory(error, "a CPU worker");
    cpu->isa = (const pmlp__isa *)self->user;
    cpu->allocator = desc->allocator;
    cpu->pack =
        (float *)pmlp__new(&desc->allocator, PMLP__K_BLOCK * cpu->isa->width, sizeof(float));
    if (!cpu->pack) {
        pmlp__delete(&desc->allocator, cpu);
        return pmlp__no_memory(error, "a CPU worker's scratch");
    }
    *context = cpu;
    return PMLP_OK;
}

static void pmlp__cpu_close(void *context) {
    pmlp__cpu *cpu = (pmlp__cpu *)context;
    const pmlp_allocator allocator = cpu->allocator;
    pmlp__delete(&allocator, cpu->pack);
    pmlp__delete(&allocator, cpu);
}

static pmlp_result pmlp__cpu_alloc(void *context, size_t bytes, void **buffer) {
    *buffer = pmlp__new(&((pmlp__cpu *)context)->allocator, bytes, 1);
    return *buffer ? PMLP_OK : PMLP_ERROR_MEMORY;
}

static void pmlp__cpu_free(void *context, void *buffer) {
    pmlp__delete(&((pmlp__cpu *)context)->allocator, buffer);
}

/* GELU's slope cannot be had from y, so z lies behind y in each row. */
static size_t pmlp__cpu_row_floats(void *context, size_t n, pmlp_activation activation) {
    const size_t padded = pmlp__pad(n, ((pmlp__cpu *)context)->isa->width);
    return activation == PMLP_GELU ? 2 * padded : padded;
}

static void pmlp__cpu_layer_destroy(void *context, void *layer_) {
    pmlp__cpu *cpu = (pmlp__cpu *)context;
    pmlp__cpu_layer *layer = (pmlp__cpu_layer *)layer_;
    int t;
    if (!layer) return;
    for (t = 0; t < PMLP_TENSOR_COUNT; t++) {
        pmlp__delete(&cpu->allocator, layer->w[t]);
        pmlp__delete(&cpu->allocator, layer->b[t]);
    }
    pmlp__delete(&cpu->allocator, layer->transposed);
    pmlp__delete(&cpu->allocator, layer->scratch);
    pmlp__delete(&cpu->allocator, layer);
}

static int pmlp__moments(pmlp_optimizer optimizer) {
    return optimizer == PMLP_ADAM || optimizer == PMLP_ADAMW             ? 2
           : optimizer == PMLP_MOMENTUM || optimizer == PMLP_NESTEROV ? 1
                                                                         : 0;
}

static pmlp_result pmlp__cpu_layer_create(void *context, const pmlp_layer_desc *desc, void **out) {
    pmlp__cpu *cpu = (pmlp__cpu *)context;
    const pmlp_allocator *allocator = &cpu->allocator;
    const size_t width = cpu->isa->width;
    const int tensors = PMLP_TENSOR_MOMENT1 + pmlp__moments(desc->optimizer);
    pmlp__cpu_layer *layer;
    int t;
    *out = NULL;
    if (pmlp__mul_overflows(desc->n_in + width, desc->n_out + width)) return PMLP_ERROR_MEMORY;
    layer = (pmlp__cpu_layer *)pmlp__new(allocator, 1, sizeof *layer);
    if (!layer) return PMLP_ERROR_MEMORY;
    layer->desc = *desc;
    layer->pad_out = pmlp__pad(desc->n_out, width);
    layer->count = layer->pad_out * desc->n_in;
    layer->scratch = (float *)pmlp__new(allocator, desc->row_outs, sizeof(float));
    if (!layer->scratch) goto no_memory;
    for (t = 0; t < tensors; t++) {
        layer->w[t] = (float *)pmlp__new(allocator, layer->count, sizeof(float));
        layer->b[t] = (float *)pmlp__new(allocator, layer->pad_out, sizeof(float));
        if (!layer->w[t] || !layer->b[t]) goto no_memory;
    }
    if (desc->needs_input_gradient) {
        const size_t count = pmlp__pad(desc->n_in, width) * desc->n_out;
        layer->transposed = (float *)pmlp__new(allocator, count, sizeof(float));
        if (!layer->transposed) goto no_memory;
    }
    *out = layer;
    return PMLP_OK;
no_memory:
    pmlp__cpu_layer_destroy(context, layer);
    return PMLP_ERROR_MEMORY;
}

/* Where w[o][i] lies in a tensor of panels. */
static size_t pmlp__panel_at(size_t n_in, size_t width, size_t o, size_t i) {
    return (o / width * n_in + i) * width + o % width;
}

static pmlp_result pmlp__cpu_write(void *context, void *layer_, pmlp_tensor tensor, const float *w,
                                   const float *b) {
    const size_t width = ((pmlp__cpu *)context)->isa->width;
    pmlp__cpu_layer *layer = (pmlp__cpu_layer *)layer_;
    const size_t n_in = layer->desc.n_in, n_out = layer->desc.n_out;
    size_t o, i;
    if (!layer->w[tensor]) return PMLP_OK;
    if (b) memcpy(layer->b[tensor], b, n_out * sizeof *b);
    for (o = 0; w && o < n_out; o++)
        for (i = 0; i < n_in; i++)
            layer->w[tensor][pmlp__panel_at(n_in, width, o, i)] = w[o * n_in + i];
    if (tensor == PMLP_TENSOR_PARAMS) layer->transposed_is_current = false;
    return PMLP_OK;
}

static pmlp_result pmlp__cpu_read(void *context, void *layer_, pmlp_tensor tensor, float *w,
                                  float *b) {
    const size_t width = ((pmlp__cpu *)context)->isa->width;
    pmlp__cpu_layer *layer = (pmlp__cpu_layer *)layer_;
    const size_t n_in = layer->desc.n_in, n_out = layer->desc.n_out;
    const float *from = layer->w[tensor];
    size_t o, i;
    if (b && from) memcpy(b, layer->b[tensor], n_out * sizeof *b);
    if (b && !from) memset(b, 0, n_out * sizeof *b);
    for (o = 0; w && o < n_out; o++)
        for (i = 0; i < n_in; i++)
            w[o * n_in + i] = from ? from[pmlp__panel_at(n_in, width, o, i)] : 0.0f;
    return PMLP_OK;
}

static pmlp_result pmlp__cpu_input(void *context, size_t rows, size_t n, const float *data,
                                   const uint32_t *index, size_t first, float *x) {
    const size_t row = pmlp__cpu_row_floats(context, n, PMLP_LINEAR);
    size_t i;
    for (i = 0; i < rows; i++) {
        const size_t from = index ? index[i] : first + i;
        memcpy(x + i * row, data + from * n, n * sizeof *x);
    }
    return PMLP_OK;
}

static pmlp_result pmlp__cpu_forward(void *context, void *layer_, size_t rows, const float *x,
                                     float *y) {
    const pmlp__isa *isa = ((pmlp__cpu *)context)->isa;
    pmlp__cpu_layer *layer = (pmlp__cpu_layer *)layer_;
    const size_t n_in = layer->desc.n_in, width = isa->width;
    const size_t x_row = pmlp__cpu_row_floats(context, n_in, layer->desc.below);
    const size_t y_row =
        pmlp__cpu_row_floats(context, layer->desc.row_outs, layer->desc.activation);
    const size_t keep = pmlp__pad(layer->desc.row_outs, width);
    size_t j;
    y += layer->desc.first_out;
    for (j = 0; j < layer->pad_out; j += width) {
        pmlp__gemm_blocks(isa, rows, n_in, x, x_row, layer->w[PMLP_TENSOR_PARAMS] + j * n_in, y + j,
                          y_row);
        pmlp__activate(layer->desc.activation, rows, width, layer->b[PMLP_TENSOR_PARAMS] + j, y + j,
                       y_row, keep);
    }
    return PMLP_OK;
}

/* transposed [pad_in / width][n_out][width] from w [pad_out / width][n_in][width], a square of
   width x width at a time, so that neither side is walked across cache lines for long. */
static void pmlp__cpu_transpose(pmlp__cpu_layer *layer, size_t width) {
    const size_t n_in = layer->desc.n_in, n_out = layer->desc.n_out;
    const float *w = layer->w[PMLP_TENSOR_PARAMS];
    size_t i0, o0, i, o;
    for (i0 = 0; i0 < n_in; i0 += width) {
        const size_t ni = n_in - i0 < width ? n_in - i0 : width;
        for (o0 = 0; o0 < n_out; o0 += width) {
            const size_t no = n_out - o0 < width ? n_out - o0 : width;
            const float *from = w + (o0 * n_in + i0 * width);
            float *to = layer->transposed + (i0 * n_out + o0 * width);
            for (i = 0; i < ni; i++)
                for (o = 0; o < no; o++) to[o * width + i] = from[i * width + o];
        }
    }
    layer->transposed_is_current = true;
}

static pmlp_result pmlp__cpu_backward_input(void *context, void *layer_, size_t rows,
                                            const float *dz, const float *x, float *dz_below) {
    const pmlp__isa *isa = ((pmlp__cpu *)context)->isa;
    pmlp__cpu_layer *layer = (pmlp__cpu_layer *)layer_;
    const size_t n_in = layer->desc.n_in, n_out = layer->desc.n_out, width = isa->width;
    const size_t dz_row = pmlp__cpu_row_floats(context, n_out, layer->desc.activation);
    const size_t x_row = pmlp__cpu_row_floats(context, n_in, layer->desc.below);
    const size_t pad_in = pmlp__pad(n_in, width);
    size_t i;
    if (!layer->transposed) return PMLP_ERROR_ARGUMENT;
    if (!layer->transposed_is_current) pmlp__cpu_transpose(layer, width);
    for (i = 0; i < pad_in; i += width) {
        pmlp__gemm_blocks(isa, rows, n_out, dz, dz_row, layer->transposed + i * n_out, dz_below + i,
                          x_row);
        pmlp__derive(layer->desc.below, rows, width, x + i, x_row, pad_in, dz_below + i);
    }
    return PMLP_OK;
}

static pmlp_result pmlp__cpu_backward_weight(void *context, void *layer_, size_t rows,
                                             const float *x, const float *dz, bool accumulate) {
    pmlp__cpu *cpu = (pmlp__cpu *)context;
    pmlp__cpu_layer *layer = (pmlp__cpu_layer *)layer_;
    const size_t n_in = layer->desc.n_in, width = cpu->isa->width;
    const size_t x_row = pmlp__cpu_row_floats(context, n_in, layer->desc.below);
    const size_t dz_row =
        pmlp__cpu_row_floats(context, layer->desc.row_outs, layer->desc.activation);
    float *dw = layer->w[PMLP_TENSOR_GRADIENTS], *db = layer->b[PMLP_TENSOR_GRADIENTS];
    size_t j, k, c, done = 0;
    dz += layer->desc.first_out;
    if (!accumulate) memset(db, 0, layer->pad_out * sizeof *db);
    do {
        const size_t n = rows - done < PMLP__K_BLOCK ? rows - done : PMLP__K_BLOCK;
        for (j = 0; j < layer->pad_out; j += width) {
            for (k = 0; k < n; k++) {
                const float *from = dz + (done + k) * dz_row + j;
                memcpy(cpu->pack + k * width, from, width * sizeof *from);
                for (c = 0; c < width; c++) db[j + c] += from[c];
            }
            pmlp__gemm_panel(cpu->isa, n_in, n, x + done * x_row, 1, x_row, cpu->pack,
                             dw + j * n_in, width, accumulate || done > 0);
        }
        done += n;
    } while (done < rows);
    return PMLP_OK;
}

static pmlp_result pmlp__cpu_loss(void *context, void *layer_, const pmlp_loss_args *args) {
    pmlp__cpu *cpu = (pmlp__cpu *)context;
    pmlp__cpu_layer *layer = (pmlp__cpu_layer *)layer_;
    const size_t n = layer->desc.row_outs, padded = pmlp__pad(n, cpu->isa->width);
    const size_t row = pmlp__cpu_row_floats(context, n, layer->desc.activation);
    const pmlp_data *data = args->data;
    size_t i;
    for (i = 0; i < args->rows; i++) {
        const size_t at = args->index ? args->index[i] : args->first + i;
        const size_t label = data->labels ? (size_t)data->labels[at] : 0;
        const float *target = data->targets ? data->targets + at * n : NULL;
        const float *y = args->y + i * row;
        float *d = args->dz ? args->dz + i * row : layer->scratch;
        args->row_loss[i] = args->loss == PMLP_LOSS_MSE
                                ? pmlp__mse_row(y, n, target, label, args->scale, d)
                                : pmlp__xent_row(y, n, label, args->scale, d);
        args->row_hit[i] = data->labels && pmlp__argmax(y, n) == label;
        if (args->dz) {
            memset(d + n, 0, (padded - n) * sizeof *d);
            pmlp__derive(layer->desc.activation, 1, n, y, row, padded, d);
        }
    }
    return PMLP_OK;
}

static pmlp_result pmlp__cpu_gradient_squares(void *context, void *layer_, double *squares) {
    const size_t width = ((pmlp__cpu *)context)->isa->width;
    pmlp__cpu_layer *layer = (pmlp__cpu_layer *)layer_;
    const size_t n_in = layer->desc.n_in, n_out = layer->desc.n_out;
    size_t j, i, c;
    for (j = 0; j < n_out; j += width) {
        const float *g = layer->w[PMLP_TENSOR_GRADIENTS] + j * n_in;
        const float *b = layer->b[PMLP_TENSOR_GRADIENTS] + j;
        double sum[PMLP__MAX_WIDTH] = {0.0};
        for (i = 0; i < n_in; i++, g += width)
            for (c = 0; c < width; c++) sum[c] += (double)g[c] * (double)g[c];
        for (c = 0; c < width && j + c < n_out; c++)
            squares[j + c] = sum[c] + (double)b[c] * (double)b[c];
    }
    return PMLP_OK;
}

static pmlp_result pmlp__cpu_update(void *context, void *layer_, const pmlp_update_args *args) {
    pmlp__cpu_layer *layer = (pmlp__cpu_layer *)layer_;
    const pmlp__update_fn update = ((pmlp__cpu *)context)->isa->update;
    float **w = layer->w, **b = layer->b;
    update(args, args->weight_decay, layer->count, w[PMLP_TENSOR_PARAMS],
           w[PMLP_TENSOR_GRADIENTS], w[PMLP_TENSOR_MOMENT1], w[PMLP_TENSOR_MOMENT2]);
    update(args, 0.0f, layer->pad_out, b[PMLP_TENSOR_PARAMS], b[PMLP_TENSOR_GRADIENTS],
           b[PMLP_TENSOR_MOMENT1], b[PMLP_TENSOR_MOMENT2]);
    layer->transposed_is_current = false;
    return PMLP_OK;
}

static pmlp_result pmlp__cpu_synchronize(void *context) {
    (void)context;
    return PMLP_OK;
}

#define PMLP__CPU_BACKEND(ISA)                                                                 \
    {PMLP_BACKEND_ABI, (uint32_t)sizeof(pmlp_backend), "cpu", &ISA, NULL, pmlp__cpu_open,      \
     pmlp__cpu_close, pmlp__cpu_alloc, pmlp__cpu_free, pmlp__cpu_row_floats,                   \
     pmlp__cpu_layer_create, pmlp__cpu_layer_destroy, pmlp__cpu_write, pmlp__cpu_read,         \
     pmlp__cpu_input, pmlp__cpu_forward, pmlp__cpu_backward_input, pmlp__cpu_backward_weight,  \
     pmlp__cpu_loss, pmlp__cpu_gradient_squares, pmlp__cpu_update, pmlp__cpu_synchronize}

static const pmlp_backend pmlp__cpu_generic = PMLP__CPU_BACKEND(pmlp__isa_generic);
#if PMLP__X86
static const pmlp_backend pmlp__cpu_sse2 = PMLP__CPU_BACKEND(pmlp__isa_sse2);
static const pmlp_backend pmlp__cpu_avx2 = PMLP__CPU_BACKEND(pmlp__isa_avx2);
static const pmlp_backend pmlp__cpu_avx512 = PMLP__CPU_BACKEND(pmlp__isa_avx512);
#elif PMLP__NEON
static const pmlp_backend pmlp__cpu_neon = PMLP__CPU_BACKEND(pmlp__isa_neon);
#endif

PMLP_API const pmlp_backend *pmlp_cpu_backend_isa(const char *isa) {
    if (!isa) return NULL;
    if (strcmp(isa, "generic") == 0) return &pmlp__cpu_generic;
#if PMLP__X86
    if (strcmp(isa, "sse2") == 0) return &pmlp__cpu_sse2;
    if (strcmp(isa, "avx2") == 0 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return &pmlp__cpu_avx2;
    if (strcmp(isa, "avx512") == 0 && __builtin_cpu_supports("avx512f")) return &pmlp__cpu_avx512;
#elif PMLP__NEON
    if (strcmp(isa, "neon") == 0) return &pmlp__cpu_neon;
#endif
    return NULL;
}

PMLP_API const pmlp_backend *pmlp_cpu_backend(void) {
    static const char *const best_first[] = {"avx512", "avx2", "sse2", "neon"};
    size_t i;
    for (i = 0; i < sizeof best_first / sizeof *best_first; i++)
        if (pmlp_cpu_backend_isa(best_first[i])) return pmlp_cpu_backend_isa(best_first[i]);
    return &pmlp__cpu_generic;
}

/*============================================================================================*/
/* >>schedule                                                                                 */
/*============================================================================================*/

struct pmlp_schedule {
    pmlp_allocator allocator;
    int workers, stages, microbatches;
    int *stage_worker;    /* [stages] */
    pmlp_action *actions; /* worker 0's list, worker 1's, ... */
    size_t *first;        /* [workers + 1]: where each worker's list begins */
    size_t capacity;      /* of actions, while the schedule is being written */
};

#define PMLP__MAX_WORKERS 16384
#define PMLP__MAX_MICROBATCHES (1 << 20)

PMLP_API void pmlp_schedule_destroy(pmlp_schedule *schedule) {
    pmlp_allocator allocator;
    if (!schedule) return;
    allocator = schedule->allocator;
    pmlp__delete(&allocator, schedule->stage_worker);
    pmlp__delete(&allocator, schedule->actions);
    pmlp__delete(&allocator, schedule->first);
    pmlp__delete(&allocator, schedule);
}

/* An empty schedule; its lists are then written worker by worker with pmlp__emit(). */
static pmlp_schedule *pmlp__schedule_new(const pmlp_allocator *allocator, int workers, int stages,
                                         int microbatches) {
    pmlp_schedule *s = (pmlp_schedule *)pmlp__new(allocator, 1, sizeof *s);
    if (!s) return NULL;
    s->allocator = *allocator;
    s->workers = workers;
    s->stages = stages;
    s->microbatches = microbatches;
    s->stage_worker = (int *)pmlp__new(allocator, (size_t)stages, sizeof *s->stage_worker);
    s->first = (size_t *)pmlp__new(allocator, (size_t)workers + 1, sizeof *s->first);
    if (s->stage_worker && s->first) return s;
    pmlp_schedule_destroy(s);
    return NULL;
}

/* Appends to the list of `worker`, which must be the last one written to. False: no memory. */
static bool pmlp__emit(pmlp_schedule *s, int worker, pmlp_op op, int stage, int microbatch) {
    const size_t count = s->first[worker + 1] ? s->first[worker + 1] : s->first[worker];
    if (count == s->capacity) {
        const size_t capacity = s->capacity ? 2 * s->capacity : 64;
        pmlp_action *grown = (pmlp_action *)pmlp__new(&s->allocator, capacity, sizeof *grown);
        if (!grown) return false;
        if (count) memcpy(grown, s->actions, count * sizeof *grown);
        pmlp__delete(&s->allocator, s->actions);
        s->actions = grown;
        s->capacity = capacity;
    }
    s->actions[count].op = op;
    s->actions[count].stage = stage;
    s->actions[count].microbatch = microbatch;
    s->first[worker + 1] = count + 1;
    return true;
}

PMLP_API int pmlp_schedule_workers(const pmlp_schedule *s) { return s ? s->workers : 0; }
PMLP_API int pmlp_schedule_stages(const pmlp_schedule *s) { return s ? s->stages : 0; }
PMLP_API int pmlp_schedule_microbatches(const pmlp_schedule *s) { return s ? s->microbatches : 0; }

PMLP_API int pmlp_schedule_stage_worker(const pmlp_schedule *s, int stage) {
    return s && stage >= 0 && stage < s->stages ? s->stage_worker[stage] : -1;
}

PMLP_API const pmlp_action *pmlp_schedule_actions(const pmlp_schedule *s, int worker, int *count) {
    const bool exists = s && worker >= 0 && worker < s->workers;
    if (count) *count = exists ? (int)(s->first[worker + 1] - s->first[worker]) : 0;
    return exists ? s->actions + s->first[worker] : NULL;
}

/* --- builders --------------------------------------------------------------------------------- */

/* A builder writes one worker's list, knowing p, m and the worker's index r. What it writes is not
   trusted: the checker proves every schedule before the trainer runs it. */

/* How many forwards worker r runs ahead of its first backward: all in which these schedules
   differ. */
static int pmlp__warm_up(pmlp_schedule_kind kind, int p, int r, int m) {
    switch (kind) {
    case PMLP_SCHEDULE_SEQUENTIAL: return 0;
    case PMLP_SCHEDULE_GPIPE: return m;
    default: return m < p - 1 - r ? m : p - 1 - r;
    }
}

/* Warm-up forwards, then one forward and one backward in turn, then the backwards that are left.
   Both counters only ascend, so that gradients accumulate in the order of the samples. */
static bool pmlp__build_one_stage(pmlp_schedule *s, pmlp_schedule_kind kind, int r) {
    const int m = s->microbatches, ahead = pmlp__warm_up(kind, s->workers, r, m);
    int f = 0, b = 0;
    bool ok = true;
    s->stage_worker[r] = r;
    while (ok && f < ahead) ok = pmlp__emit(s, r, PMLP_OP_F, r, f++);
    while (ok && b < m) {
        if (f < m) ok = pmlp__emit(s, r, PMLP_OP_F, r, f++);
        ok = ok && pmlp__emit(s, r, PMLP_OP_B, r, b++);
    }
    return ok && pmlp__emit(s, r, PMLP_OP_U, r, -1);
}

PMLP_API pmlp_result pmlp_schedule_create(const pmlp_schedule_desc *desc, pmlp_schedule **schedule,
                                          pmlp_error *error) {
    pmlp_schedule *s;
    pmlp_schedule_kind kind;
    int p, m, r;
    if (!schedule) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "schedule: is NULL");
    *schedule = NULL;
    if (!desc) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "desc: is NULL");
    p = desc->workers ? desc->workers : 1;
    m = desc->microbatches ? desc->microbatches : 1;
    kind = desc->kind ? desc->kind : PMLP_SCHEDULE_1F1B;
    if (p < 1 || p > PMLP__MAX_WORKERS)
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "workers: %d is not in 1 .. %d", p,
                          PMLP__MAX_WORKERS);
    if (m < 1 || m > PMLP__MAX_MICROBATCHES)
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "microbatches: %d is not in 1 .. %d", m,
                          PMLP__MAX_MICROBATCHES);
    if (pmlp__is_half(&desc->allocator))
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "allocator: has only one of alloc and free");
    if ((int)kind < 0 || kind >= PMLP_SCHEDULE_KIND_COUNT)
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "kind: %d is no schedule", (int)kind);
    s = pmlp__schedule_new(&desc->allocator, p, p, m);
    if (!s) return pmlp__no_memory(error, "a schedule");
    for (r = 0; r < p; r++) {
        if (!pmlp__build_one_stage(s, kind, r)) {
            pmlp_schedule_destroy(s);
            return pmlp__no_memory(error, "a schedule's actions");
        }
    }
    *schedule = s;
    return PMLP_OK;
}

/* --- text form -------------------------------------------------------------------------------- */

/* The text is read twice, once for the sizes and once for the lists, so that nothing has to grow
   but the list of actions. Numbers are bounded as they are read: a text cannot ask for more memory
   than is in proportion to its length. */
typedef struct pmlp__parser {
    const char *text, *end;
    int row, cell; /* from 1, for messages */
    pmlp_error *error;
} pmlp__parser;

static bool pmlp__is_blank(char c) { return c == ' ' || c == '\t' || c == '\r'; }

/* Reads a number below `limit`; false if there is none or it is too large. */
static bool pmlp__parse_number(const char **at, const char *end, int limit, int *number) {
    const char *p = *at;
    int n = 0;
    if (p == end || *p < '0' || *p > '9') return false;
    for (; p < end && *p >= '0' && *p <= '9'; p++) {
        n = 10 * n + (*p - '0');
        if (n >= limit) return false;
    }
    *at = p;
    *number = n;
    return true;
}

static pmlp_result pmlp__parse_fail(pmlp__parser *p, const char *from, const char *to,
                                    const char *why) {
    const int shown = to - from < 24 ? (int)(to - from) : 24;
    return pmlp__fail(p->error, PMLP_ERROR_PARSE, "row %d, cell %d: '%.*s' %s", p->row, p->cell,
                      shown, from, why);
}

/* One cell without its blanks: stage, op, micro-batch. */
static pmlp_result pmlp__parse_cell(pmlp__parser *p, const char *from, const char *to,
                                    pmlp_action *action) {
    const char *at = from;
    action->microbatch = -1;
    if (!pmlp__parse_number(&at, to, PMLP__MAX_WORKERS, &action->stage))
        return pmlp__parse_fail(p, from, to, "does not begin with a stage, as 0F1 does");
    switch (at < to ? *at++ : 0) {
    case 'F': action->op = PMLP_OP_F; break;
    case 'I': action->op = PMLP_OP_I; break;
    case 'W': action->op = PMLP_OP_W; break;
    case 'B': action->op = PMLP_OP_B; break;
    case 'U': action->op = PMLP_OP_U; break;
    case 'S':
    case 'R':
        return pmlp__parse_fail(p, from, to, "is a hand-off; leave those out, they are derived");
    default: return pmlp__parse_fail(p, from, to, "has no op F, I, W, B or U after the stage");
    }
    if (action->op != PMLP_OP_U &&
        !pmlp__parse_number(&at, to, PMLP__MAX_MICROBATCHES, &action->microbatch))
        return pmlp__parse_fail(p, from, to, "does not end with a micro-batch, as 0F1 does");
    return at == to ? PMLP_OK : pmlp__parse_fail(p, from, to, "has something behind the action");
}

/* The next cell that holds an action; moves over empty cells and ends of rows. *found is false at
   the end of the text. */
static pmlp_result pmlp__parse_next(pmlp__parser *p, pmlp_action *action, bool *found) {
    *found = false;
    while (p->text < p->end) {
        const char *from = p->text, *stop = from, *to;
        pmlp_result result = PMLP_OK;
        while (stop < p->end && *stop != ',' && *stop != '\n') stop++;
        for (to = stop; to > from && pmlp__is_blank(to[-1]); to--) continue;
        while (from < to && pmlp__is_blank(*from)) from++;
        if (from < to) {
            *found = true;
            result = pmlp__parse_cell(p, from, to, action);
            if (result != PMLP_OK) return result;
        }
        if (*found) { /* stay on the delimiter, so that row and cell still name this action */
            p->text = stop;
            return PMLP_OK;
        }
        p->text = stop < p->end ? stop + 1 : stop;
        if (stop < p->end && *stop == '\n') {
            p->row++;
            p->cell = 1;
        } else {
            p->cell++;
        }
    }
    return PMLP_OK;
}

/* First reading: how many workers, stages, micro-batches. */
static pmlp_result pmlp__parse_sizes(pmlp__parser p, int *workers, int *stages, int *microbatches) {
    pmlp_action a;
    bool found;
    pmlp_result result;
    *workers = *stages = *microbatches = 0;
    while ((result = pmlp__parse_next(&p, &a, &found)) == PMLP_OK && found) {
        if (p.row > *workers + 1)
            return pmlp__fail(p.error, PMLP_ERROR_PARSE,
                              "row %d is empty: each row is a worker and needs actions",
                              *workers + 1);
        *workers = p.row;
        if (a.stage >= *stages) *stages = a.stage + 1;
        if (a.microbatch >= *microbatches) *microbatches = a.microbatch + 1;
    }
    if (result != PMLP_OK) return result;
    if (*microbatches == 0)
        return pmlp__fail(p.error, PMLP_ERROR_PARSE, "the text holds no actions such as 0F0");
    return PMLP_OK;
}

/* Updates that the text left out, in ascending order at the end of the row. */
static bool pmlp__add_updates(pmlp_schedule *s, int worker) {
    int stage;
    size_t i;
    for (stage = 0; stage < s->stages; stage++) {
        bool present = s->stage_worker[stage] != worker;
        for (i = s->first[worker]; !present && i < s->first[worker + 1]; i++)
            present = s->actions[i].op == PMLP_OP_U && s->actions[i].stage == stage;
        if (!present && !pmlp__emit(s, worker, PMLP_OP_U, stage, -1)) return false;
    }
    return true;
}

/* Second reading: the lists. */
static pmlp_result pmlp__parse_lists(pmlp__parser p, pmlp_schedule *s) {
    pmlp_action a;
    bool found;
    pmlp_result result;
    int stage, worker = 0;
    for (stage = 0; stage < s->stages; stage++) s->stage_worker[stage] = -1;
    while ((result = pmlp__parse_next(&p, &a, &found)) == PMLP_OK && found) {
        if (p.row - 1 != worker && !pmlp__add_updates(s, worker++)) break;
        if (s->stage_worker[a.stage] < 0) s->stage_worker[a.stage] = worker;
        if (s->stage_worker[a.stage] != worker) {
            pmlp__fail(p.error, PMLP_ERROR_SCHEDULE,
                       "row %d, cell %d: worker %d acts on stage %d, which belongs to worker %d",
                       p.row, p.cell, worker, a.stage, s->stage_worker[a.stage]);
            pmlp__error_place(p.error, worker, a);
            return PMLP_ERROR_SCHEDULE;
        }
        if (!pmlp__emit(s, worker, a.op, a.stage, a.microbatch)) break;
    }
    if (result != PMLP_OK) return result;
    if (found || !pmlp__add_updates(s, worker))
        return pmlp__no_memory(p.error, "a schedule's actions");
    for (stage = 0; stage < s->stages; stage++)
        if (s->stage_worker[stage] < 0)
            return pmlp__fail(p.error, PMLP_ERROR_SCHEDULE,
                              "stage %d of %d is on no worker: no row has an action for it", stage,
                              s->stages);
    return PMLP_OK;
}

PMLP_API pmlp_result pmlp_schedule_parse(const char *text, size_t size,
                                         const pmlp_allocator *allocator, pmlp_schedule **schedule,
                                         pmlp_error *error) {
    const pmlp_allocator memory = pmlp__allocator_or_default(allocator);
    pmlp_schedule *s;
    pmlp__parser p;
    pmlp_result result;
    int workers, stages, microbatches;
    if (!schedule) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "schedule: is NULL");
    *schedule = NULL;
    if (!text) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "text: is NULL");
    if (pmlp__is_half(&memory))
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "allocator: has only one of alloc and free");
    p.text = text;
    p.end = text + size;
    p.row = p.cell = 1;
    p.error = error;
    result = pmlp__parse_sizes(p, &workers, &stages, &microbatches);
    if (result != PMLP_OK) return result;
    s = pmlp__schedule_new(&memory, workers, stages, microbatches);
    if (!s) return pmlp__no_memory(error, "a schedule");
    result = pmlp__parse_lists(p, s);
    if (result == PMLP_OK) *schedule = s;
    else pmlp_schedule_destroy(s);
    return result;
}

/* End of a list without the updates that parsing would add again. */
static size_t pmlp__end_without_updates(const pmlp_schedule *s, int worker) {
    size_t end = s->first[worker + 1];
    int above = INT_MAX;
    while (end > s->first[worker] && s->actions[end - 1].op == PMLP_OP_U &&
           s->actions[end - 1].stage < above)
        above = s->actions[--end].stage;
    return end;
}

static void pmlp__put_action(pmlp__text *text, pmlp_action a, bool with_stage) {
    if (with_stage) pmlp__put(text, "%d", a.stage);
    pmlp__put(text, "%s", pmlp_op_name(a.op));
    if (a.microbatch >= 0) pmlp__put(text, "%d", a.microbatch);
}

PMLP_API pmlp_result pmlp_schedule_print(const pmlp_schedule *s, char *buffer, size_t size,
                                         size_t *length) {
    pmlp__text text;
    int worker;
    size_t i;
    if (!s || (!buffer && size > 0)) return PMLP_ERROR_ARGUMENT;
    text.buffer = buffer;
    text.size = size;
    text.length = 0;
    for (worker = 0; worker < s->workers; worker++) {
        const size_t end = pmlp__end_without_updates(s, worker);
        for (i = s->first[worker]; i < end; i++) {
            if (i > s->first[worker]) pmlp__put(&text, ",");
            pmlp__put_action(&text, s->actions[i], true);
        }
        pmlp__put(&text, "\n");
    }
    pmlp__text_end(&text, length);
    return PMLP_OK;
}

/* --- lowering --------------------------------------------------------------------------------- */

/* A schedule says what is computed when; that results have to travel follows from it:

        1B3   becomes   1RECV_B3  1I3  1SEND_B3  1W3

   The gradient for the stage below leaves between I and W: nobody waits for W. Each SEND stands
   right behind its producer, each RECV right before its consumer. Whether that can deadlock, and
   how many slots each queue needs, is for the checker to say; GPipe and 1F1B need one. */
/* True if a stage and its neighbour (stage + 1 or stage - 1) both exist, on different workers. */
static bool pmlp__crosses(const pmlp_schedule *s, int stage, int neighbour) {
    return neighbour >= 0 && neighbour < s->stages &&
           s->stage_worker[stage] != s->stage_worker[neighbour];
}

static bool pmlp__lower_action(const pmlp_schedule *s, pmlp_schedule *out, int worker,
                               pmlp_action a) {
    const bool below = a.op != PMLP_OP_U && pmlp__crosses(s, a.stage, a.stage - 1);
    const bool above = a.op != PMLP_OP_U && pmlp__crosses(s, a.stage, a.stage + 1);
    const int stage = a.stage, i = a.microbatch;
    switch (a.op) {
    case PMLP_OP_F:
        return (!below || pmlp__emit(out, worker, PMLP_OP_RECV_F, stage, i)) &&
               pmlp__emit(out, worker, PMLP_OP_F, stage, i) &&
               (!above || pmlp__emit(out, worker, PMLP_OP_SEND_F, stage, i));
    case PMLP_OP_I:
    case PMLP_OP_B:
        return (!above || pmlp__emit(out, worker, PMLP_OP_RECV_B, stage, i)) &&
               pmlp__emit(out, worker, PMLP_OP_I, stage, i) &&
               (!below || pmlp__emit(out, worker, PMLP_OP_SEND_B, stage, i)) &&
               (a.op == PMLP_OP_I || pmlp__emit(out, worker, PMLP_OP_W, stage, i));
    default: return pmlp__emit(out, worker, a.op, stage, i);
    }
}

PMLP_API pmlp_result pmlp_schedule_lower(const pmlp_schedule *s, pmlp_schedule **lowered,
                                         pmlp_error *error) {
    pmlp_schedule *out;
    int worker;
    size_t i;
    if (!lowered) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "lowered: is NULL");
    *lowered = NULL;
    if (!s) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "schedule: is NULL");
    for (i = 0; i < s->first[s->workers]; i++)
        if (s->actions[i].op >= PMLP_OP_SEND_F)
            return pmlp__fail(error, PMLP_ERROR_SCHEDULE, "the schedule has been lowered already");
    out = pmlp__schedule_new(&s->allocator, s->workers, s->stages, s->microbatches);
    if (!out) return pmlp__no_memory(error, "a schedule");
    memcpy(out->stage_worker, s->stage_worker, (size_t)s->stages * sizeof *s->stage_worker);
    for (worker = 0; worker < s->workers; worker++)
        for (i = s->first[worker]; i < s->first[worker + 1]; i++)
            if (!pmlp__lower_action(s, out, worker, s->actions[i])) {
                pmlp_schedule_destroy(out);
                return pmlp__no_memory(error, "a lowered schedule");
            }
    *lowered = out;
    return PMLP_OK;
}

/* Only the forwards, in the order that training has them, lowered: what evaluation runs. */
static pmlp_schedule *pmlp__schedule_forward(const pmlp_schedule *s) {
    pmlp_schedule *out = pmlp__schedule_new(&s->allocator, s->workers, s->stages, s->microbatches);
    bool ok = out != NULL;
    int worker;
    size_t i;
    if (ok) memcpy(out->stage_worker, s->stage_worker, (size_t)s->stages * sizeof *s->stage_worker);
    for (worker = 0; ok && worker < s->workers; worker++)
        for (i = s->first[worker]; ok && i < s->first[worker + 1]; i++)
            if (s->actions[i].op == PMLP_OP_F)
                ok = pmlp__lower_action(s, out, worker, s->actions[i]);
    if (ok) return out;
    pmlp_schedule_destroy(out);
    return NULL;
}

/*============================================================================================*/
/* >>check: a proof that a schedule is right and cannot deadlock                              */
/*============================================================================================*/

/* What has been seen of micro-batch i in stage s: bits in seen[s * m + i]. */
#define PMLP__SEEN_F 1u
#define PMLP__SEEN_I 2u
#define PMLP__SEEN_W 4u

static unsigned pmlp__seen_by(pmlp_op op) {
    switch (op) {
    case PMLP_OP_F: return PMLP__SEEN_F;
    case PMLP_OP_I: return PMLP__SEEN_I;
    case PMLP_OP_W: return PMLP__SEEN_W;
    case PMLP_OP_B: return PMLP__SEEN_I | PMLP__SEEN_W;
    default: return 0;
    }
}

static size_t pmlp__cell(const pmlp_schedule *s, int stage, int microbatch) {
    return (size_t)stage * (size_t)s->microbatches + (size_t)microbatch;
}

/* "1F3", for messages */
typedef struct pmlp__label { char text[40]; } pmlp__label;
static pmlp__label pmlp__label_of(pmlp_op op, int stage, int microbatch) {
    pmlp__label label;
    const pmlp_action a = {op, stage, microbatch};
    pmlp__text text;
    text.buffer = label.text;
    text.size = sizeof label.text;
    text.length = 0;
    pmlp__put_action(&text, a, true);
    pmlp__text_end(&text, NULL);
    return label;
}

static pmlp__label pmlp__action_label(pmlp_action a) {
    return pmlp__label_of(a.op, a.stage, a.microbatch);
}

static pmlp_result pmlp__check_fail(pmlp_error *error, pmlp_result result, int worker,
                                    pmlp_action a, const char *format, ...) PMLP__FORMAT(5, 6);
static pmlp_result pmlp__check_fail(pmlp_error *error, pmlp_result result, int worker,
                                    pmlp_action a, const char *format, ...) {
    char text[sizeof error->text];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    pmlp__fail(error, result, "%s", text);
    pmlp__error_place(error, worker, a);
    return result;
}

/* Whether a list names far more micro-batches and stages than it has actions: a table of all of
   them would be out of proportion to the text that it came from. */
static bool pmlp__is_sparse(const pmlp_schedule *s, pmlp_error *error) {
    const double cells = (double)s->stages * (double)s->microbatches;
    if (cells <= 4.0 * (double)s->first[s->workers] + 4096.0) return false;
    pmlp__fail(error, PMLP_ERROR_SCHEDULE,
               "%.0f actions are far too few for %d stages and %d micro-batches: a stage needs "
               "every micro-batch from 0 on",
               (double)s->first[s->workers], s->stages, s->microbatches);
    return true;
}

/* Rule 1: every action is of a stage of its worker and stands there exactly once. */
static pmlp_result pmlp__check_complete(const pmlp_schedule *s, unsigned char *seen, int *updates,
                                        pmlp_error *error) {
    static const pmlp_op needed[] = {PMLP_OP_F, PMLP_OP_I, PMLP_OP_W};
    int worker, stage, i, n;
    size_t at;
    for (worker = 0; worker < s->workers; worker++)
        for (at = s->first[worker]; at < s->first[worker + 1]; at++) {
            const pmlp_action a = s->actions[at];
            const unsigned bits = pmlp__seen_by(a.op);
            if (a.op == PMLP_OP_U) {
                if (updates[a.stage]++)
                    return pmlp__check_fail(error, PMLP_ERROR_SCHEDULE, worker, a,
                                            "worker %d does %s twice", worker,
                                            pmlp__action_label(a).text);
                continue;
            }
            if (!bits)
                return pmlp__check_fail(error, PMLP_ERROR_SCHEDULE, worker, a,
                                        "worker %d: %s is no action of a schedule before lowering",
                                        worker, pmlp__action_label(a).text);
            if (seen[pmlp__cell(s, a.stage, a.microbatch)] & bits)
                return pmlp__check_fail(error, PMLP_ERROR_SCHEDULE, worker, a,
                                        "worker %d does %s twice", worker,
                                        pmlp__action_label(a).text);
            seen[pmlp__cell(s, a.stage, a.microbatch)] |= (unsigned char)bits;
        }
    for (stage = 0; stage < s->stages; stage++) {
        pmlp_action a = {PMLP_OP_U, stage, -1};
        worker = s->stage_worker[stage];
        for (i = 0; i < s->microbatches; i++)
            for (n = 0; n < 3; n++)
                if (!(seen[pmlp__cell(s, stage, i)] & pmlp__seen_by(needed[n]))) {
                    const pmlp__label whole = pmlp__label_of(PMLP_OP_B, stage, i);
                    a.op = needed[n];
                    a.microbatch = i;
                    return pmlp__check_fail(
                        error, PMLP_ERROR_SCHEDULE, worker, a, "worker %d never does %s%s%s",
                        worker, pmlp__action_label(a).text, n ? ", nor the whole backward " : "",
                        n ? whole.text : "");
                }
        if (!updates[stage])
            return pmlp__check_fail(error, PMLP_ERROR_SCHEDULE, worker, a,
                                    "worker %d never does %dU, the update of stage %d", worker,
                                    stage, stage);
    }
    return PMLP_OK;
}

/* Rule 2: each worker's own order. seen is all zero at first; next_w [stages] too. */
static pmlp_result pmlp__check_order(const pmlp_schedule *s, unsigned char *seen, int *next_w,
                                     pmlp_error *error) {
    int worker, updated;
    size_t at;
    for (worker = 0; worker < s->workers; worker++)
        for (updated = -1, at = s->first[worker]; at < s->first[worker + 1]; at++) {
            const pmlp_action a = s->actions[at];
            const unsigned bits = pmlp__seen_by(a.op);
            unsigned char *cell;
            if (a.op == PMLP_OP_U) {
                updated = a.stage;
                if (next_w[a.stage] < s->microbatches)
                    return pmlp__check_fail(
                        error, PMLP_ERROR_SCHEDULE, worker, a,
                        "worker %d does %s before it has the gradient of micro-batch %d (%s)",
                        worker, pmlp__action_label(a).text, next_w[a.stage],
                        pmlp__label_of(PMLP_OP_W, a.stage, next_w[a.stage]).text);
                continue;
            }
            if ((bits & PMLP__SEEN_W) && updated >= 0)
                return pmlp__check_fail(
                    error, PMLP_ERROR_SCHEDULE, worker, a,
                    "worker %d does %dU before %s: updates wait for the gradients of every stage",
                    worker, updated, pmlp__action_label(a).text);
            cell = &seen[pmlp__cell(s, a.stage, a.microbatch)];
            if ((bits & PMLP__SEEN_I) && !(*cell & PMLP__SEEN_F))
                return pmlp__check_fail(error, PMLP_ERROR_SCHEDULE, worker, a,
                                        "worker %d does %s before %s", worker,
                                        pmlp__action_label(a).text,
                                        pmlp__label_of(PMLP_OP_F, a.stage, a.microbatch).text);
            if (a.op == PMLP_OP_W && !(*cell & PMLP__SEEN_I))
                return pmlp__check_fail(error, PMLP_ERROR_SCHEDULE, worker, a,
                                        "worker %d does %s before %s", worker,
                                        pmlp__action_label(a).text,
                                        pmlp__label_of(PMLP_OP_I, a.stage, a.microbatch).text);
            if ((bits & PMLP__SEEN_W) && a.microbatch != next_w[a.stage]++)
                return pmlp__check_fail(
                    error, PMLP_ERROR_SCHEDULE, worker, a,
                    "worker %d does %s before %s: gradients accumulate in ascending order", worker,
                    pmlp__action_label(a).text,
                    pmlp__label_of(a.op, a.stage, next_w[a.stage] - 1).text);
            *cell |= (unsigned char)bits;
        }
    return PMLP_OK;
}

/* Most micro-batches whose activations the worker holds at once. */
static int pmlp__peak(const pmlp_schedule *s, int worker) {
    int held = 0, peak = 0;
    size_t at;
    for (at = s->first[worker]; at < s->first[worker + 1]; at++) {
        const pmlp_op op = s->actions[at].op;
        if (op == PMLP_OP_F && ++held > peak) peak = held;
        if (op == PMLP_OP_B || op == PMLP_OP_W) held--;
    }
    return peak;
}

/* Replay and simulation run all lists at once without threads: take a worker that may be able to go
   on, do its actions until one has to wait, put those into the queue again for whom something has
   changed. Each action is done once, so that the time grows with the number of actions. */
/* Workers that may be able to go on: a queue without doubles. */
typedef struct pmlp__ready {
    int *queue;
    bool *queued;
    int workers, head, count;
} pmlp__ready;

static void pmlp__ready_add(pmlp__ready *r, int worker) {
    if (r->queued[worker]) return;
    r->queued[worker] = true;
    r->queue[(r->head + r->count++) % r->workers] = worker;
}

static int pmlp__ready_take(pmlp__ready *r) {
    const int worker = r->queue[r->head];
    r->head = (r->head + 1) % r->workers;
    r->count--;
    r->queued[worker] = false;
    return worker;
}

static bool pmlp__ready_init(pmlp__ready *r, const pmlp_allocator *allocator, int workers) {
    int i;
    memset(r, 0, sizeof *r);
    r->workers = workers;
    r->queue = (int *)pmlp__new(allocator, (size_t)workers, sizeof *r->queue);
    r->queued = (bool *)pmlp__new(allocator, (size_t)workers, sizeof *r->queued);
    for (i = 0; r->queue && r->queued && i < workers; i++) pmlp__ready_add(r, i);
    return r->queue && r->queued;
}

static void pmlp__ready_done(pmlp__ready *r, const pmlp_allocator *allocator) {
    pmlp__delete(allocator, r->queue);
    pmlp__delete(allocator, r->queued);
}

/* --- replay: runs the lowered lists without computing ----------------------------------------- */

/* Edge number of the message that an action sends or receives: 2 s for activations from stage s to
   s + 1, 2 s + 1 for gradients from stage s + 1 to s. */
static int pmlp__edge_of(pmlp_action a) {
    switch (a.op) {
    case PMLP_OP_SEND_F: return 2 * a.stage;
    case PMLP_OP_RECV_F: return 2 * (a.stage - 1);
    case PMLP_OP_SEND_B: return 2 * (a.stage - 1) + 1;
    case PMLP_OP_RECV_B: return 2 * a.stage + 1;
    default: return -1;
    }
}

static bool pmlp__is_send(pmlp_op op) { return op == PMLP_OP_SEND_F || op == PMLP_OP_SEND_B; }

typedef struct pmlp__replay {
    const pmlp_schedule *s; /* lowered */
    const int *slots;       /* [2 stages] */
    size_t *next;           /* [workers]: the action that each is at */
    int *sent, *received;   /* [2 stages]: messages so far */
    int *order;             /* [2 stages][m]: micro-batches in the order sent */
    unsigned char *seen;    /* [stages][m] */
    int weights_left;       /* W still to come, of all stages: U waits for 0 */
    pmlp__ready ready;
} pmlp__replay;

static void pmlp__replay_done(pmlp__replay *p, const pmlp_allocator *allocator) {
    pmlp__delete(allocator, p->next);
    pmlp__delete(allocator, p->sent);
    pmlp__delete(allocator, p->received);
    pmlp__delete(allocator, p->order);
    pmlp__delete(allocator, p->seen);
    pmlp__ready_done(&p->ready, allocator);
}

static bool pmlp__replay_init(pmlp__replay *p, const pmlp_schedule *s, const int *slots,
                              bool with_updates) {
    const pmlp_allocator *allocator = &s->allocator;
    const size_t edges = 2 * (size_t)s->stages, m = (size_t)s->microbatches;
    int worker;
    memset(p, 0, sizeof *p);
    p->s = s;
    p->slots = slots;
    p->weights_left = with_updates ? s->stages * s->microbatches : 0;
    p->next = (size_t *)pmlp__new(allocator, (size_t)s->workers, sizeof *p->next);
    p->sent = (int *)pmlp__new(allocator, edges, sizeof *p->sent);
    p->received = (int *)pmlp__new(allocator, edges, sizeof *p->received);
    p->order = (int *)pmlp__new(allocator, edges * m, sizeof *p->order);
    p->seen = (unsigned char *)pmlp__new(allocator, (size_t)s->stages * m, 1);
    if (pmlp__ready_init(&p->ready, allocator, s->workers) && p->next && p->sent && p->received &&
        p->order && p->seen) {
        for (worker = 0; worker < s->workers; worker++) p->next[worker] = s->first[worker];
        return true;
    }
    pmlp__replay_done(p, allocator);
    return false;
}

/* The worker at the other end of a SEND's or RECV's edge. */
static int pmlp__peer(const pmlp_schedule *s, pmlp_action a) {
    const bool up = a.op == PMLP_OP_SEND_F || a.op == PMLP_OP_RECV_B;
    return s->stage_worker[up ? a.stage + 1 : a.stage - 1];
}

/* Does the worker's next action if it can. PMLP_BUSY: it must wait. */
static pmlp_result pmlp__replay_action(pmlp__replay *p, int worker, pmlp_action a,
                                       pmlp_error *error) {
    const pmlp_schedule *s = p->s;
    const int edge = pmlp__edge_of(a), m = s->microbatches;
    int i;
    if (a.op == PMLP_OP_U) return p->weights_left > 0 ? PMLP_BUSY : PMLP_OK;
    if (edge >= 0 && pmlp__is_send(a.op)) {
        if (p->sent[edge] - p->received[edge] >= p->slots[edge]) return PMLP_BUSY;
        p->order[(size_t)edge * (size_t)m + (size_t)p->sent[edge]++] = a.microbatch;
        pmlp__ready_add(&p->ready, pmlp__peer(s, a));
        return PMLP_OK;
    }
    if (edge >= 0) {
        if (p->sent[edge] == p->received[edge]) return PMLP_BUSY;
        i = p->order[(size_t)edge * (size_t)m + (size_t)p->received[edge]++];
        if (i != a.microbatch)
            return pmlp__check_fail(
                error, PMLP_ERROR_SCHEDULE, worker, a,
                "worker %d expects micro-batch %d in %s, but stage %d hands over %d first",
                worker, a.microbatch, pmlp__action_label(a).text,
                a.op == PMLP_OP_RECV_F ? a.stage - 1 : a.stage + 1, i);
        pmlp__ready_add(&p->ready, pmlp__peer(s, a));
        return PMLP_OK;
    }
    /* a neighbour stage on the same worker hands over through memory: it must have come before */
    if (a.op == PMLP_OP_F && a.stage > 0 && !pmlp__crosses(s, a.stage, a.stage - 1) &&
        !(p->seen[pmlp__cell(s, a.stage - 1, a.microbatch)] & PMLP__SEEN_F))
        return pmlp__check_fail(error, PMLP_ERROR_SCHEDULE, worker, a,
                                "worker %d does %s before %s", worker,
                                pmlp__action_label(a).text,
                                pmlp__label_of(a.op, a.stage - 1, a.microbatch).text);
    if (a.op == PMLP_OP_I && a.stage + 1 < s->stages && !pmlp__crosses(s, a.stage, a.stage + 1) &&
        !(p->seen[pmlp__cell(s, a.stage + 1, a.microbatch)] & PMLP__SEEN_I))
        return pmlp__check_fail(error, PMLP_ERROR_SCHEDULE, worker, a,
                                "worker %d does the backward of %s before that of %s", worker,
                                pmlp__label_of(PMLP_OP_B, a.stage, a.microbatch).text,
                                pmlp__label_of(PMLP_OP_B, a.stage + 1, a.microbatch).text);
    p->seen[pmlp__cell(s, a.stage, a.microbatch)] |= (unsigned char)pmlp__seen_by(a.op);
    if (a.op == PMLP_OP_W && --p->weights_left == 0)
        for (i = 0; i < s->workers; i++) pmlp__ready_add(&p->ready, i);
    return PMLP_OK;
}

/* Whom a stuck worker waits for, and why, as a clause: "worker 1 waits at 1RECV_F0 for ...". */
static int pmlp__waits_for(const pmlp__replay *p, int worker, pmlp__text *text) {
    const pmlp_schedule *s = p->s;
    const pmlp_action a = s->actions[p->next[worker]];
    int other = 0;
    if (a.op == PMLP_OP_U) {
        while (other < s->workers - 1 &&
               (other == worker || p->next[other] == s->first[other + 1] ||
                s->actions[p->next[other]].op == PMLP_OP_U))
            other++;
        pmlp__put(text, "worker %d waits with %dU for all gradients", worker, a.stage);
        return other;
    }
    other = pmlp__peer(s, a);
    if (pmlp__is_send(a.op)) {
        pmlp__put(text, "worker %d waits with ", worker);
        pmlp__put_action(text, a, true);
        pmlp__put(text, " for a free slot of %d towards worker %d", p->slots[pmlp__edge_of(a)],
                  other);
    } else {
        pmlp_action need = a;
        need.op = a.op == PMLP_OP_RECV_F ? PMLP_OP_F : PMLP_OP_I;
        need.stage = a.op == PMLP_OP_RECV_F ? a.stage - 1 : a.stage + 1;
        pmlp__put(text, "worker %d waits before %d%s%d for ", worker, a.stage,
                  a.op == PMLP_OP_RECV_F ? "F" : "B", a.microbatch);
        pmlp__put_action(text, need, true);
        pmlp__put(text, " of worker %d", other);
    }
    return other;
}

/* Follows who waits for whom from the first stuck worker until somebody comes up again, then prints
   that circle. There is one: nobody can go on, and each waits for one that has not finished. */
static pmlp_result pmlp__report_deadlock(const pmlp__replay *p, pmlp_error *error) {
    const pmlp_schedule *s = p->s;
    char message[sizeof error->text];
    pmlp__text text, nowhere;
    int worker = 0, first, i;
    memset(&nowhere, 0, sizeof nowhere);
    while (worker < s->workers && p->next[worker] == s->first[worker + 1]) worker++;
    for (i = 0; i < s->workers; i++) worker = pmlp__waits_for(p, worker, &nowhere);
    text.buffer = message;
    text.size = sizeof message;
    text.length = 0;
    pmlp__put(&text, "deadlock: ");
    first = worker;
    do {
        worker = pmlp__waits_for(p, worker, &text);
        pmlp__put(&text, worker == first ? "" : ", ");
    } while (worker != first && text.length < text.size);
    pmlp__text_end(&text, NULL);
    return pmlp__check_fail(error, PMLP_ERROR_DEADLOCK, first, s->actions[p->next[first]], "%s",
                            message);
}

/* Rule 3: with these slots per edge, everybody reaches the end of the list. */
static pmlp_result pmlp__replay_run(const pmlp_schedule *lowered, const int *slots,
                                    bool with_updates, pmlp_error *error) {
    pmlp__replay p;
    pmlp_result result = PMLP_OK;
    int worker, stuck = 0;
    if (!pmlp__replay_init(&p, lowered, slots, with_updates))
        return pmlp__no_memory(error, "checking a schedule");
    while (p.ready.count > 0 && (result == PMLP_OK || result == PMLP_BUSY)) {
        worker = pmlp__ready_take(&p.ready);
        result = PMLP_OK;
        while (p.next[worker] < lowered->first[worker + 1]) {
            result = pmlp__replay_action(&p, worker, lowered->actions[p.next[worker]], error);
            if (result != PMLP_OK) break;
            p.next[worker]++;
        }
    }
    if (result == PMLP_BUSY) result = PMLP_OK;
    for (worker = 0; worker < lowered->workers; worker++)
        stuck += p.next[worker] < lowered->first[worker + 1];
    if (result == PMLP_OK && stuck > 0) result = pmlp__report_deadlock(&p, error);
    pmlp__replay_done(&p, &lowered->allocator);
    return result;
}

/* The same with one number of slots for all edges. */
static pmlp_result pmlp__replay_with(const pmlp_schedule *lowered, int *slots, int number,
                                     pmlp_error *error) {
    int edge;
    for (edge = 0; edge < 2 * lowered->stages; edge++) slots[edge] = number;
    return pmlp__replay_run(lowered, slots, true, error);
}

/* Fewest slots per edge: the smallest number that serves all edges, then each edge by itself as few
   as the others, already lowered, allow. slots is [2 stages]; on success it holds the result. */
static pmlp_result pmlp__fewest_slots(const pmlp_schedule *lowered, bool each, int *slots,
                                      pmlp_error *error) {
    const int edges = 2 * (lowered->stages - 1);
    int low = 1, high = lowered->microbatches, edge;
    pmlp_result result = pmlp__replay_with(lowered, slots, high, error);
    if (result != PMLP_OK) return result; /* not even with room for everything */
    while (low < high) {
        const int middle = low + (high - low) / 2;
        result = pmlp__replay_with(lowered, slots, middle, NULL);
        if (result == PMLP_OK) high = middle;
        else if (result == PMLP_ERROR_DEADLOCK) low = middle + 1;
        else return pmlp__no_memory(error, "checking a schedule");
    }
    for (edge = 0; edge < edges; edge++) slots[edge] = high;
    for (edge = 0; each && edge < edges; edge++)
        while (slots[edge] > 1) {
            slots[edge]--;
            result = pmlp__replay_run(lowered, slots, true, NULL);
            if (result == PMLP_OK) continue;
            slots[edge]++;
            if (result != PMLP_ERROR_DEADLOCK) return pmlp__no_memory(error, "checking a schedule");
            break;
        }
    return PMLP_OK;
}

/* Rules 1 and 2, and the room that both need. */
static pmlp_result pmlp__check_lists(const pmlp_schedule *s, pmlp_error *error) {
    const size_t cells = (size_t)s->stages * (size_t)s->microbatches;
    unsigned char *seen;
    int *counters;
    pmlp_result result;
    if (pmlp__is_sparse(s, error)) return PMLP_ERROR_SCHEDULE;
    seen = (unsigned char *)pmlp__new(&s->allocator, cells, 1);
    counters = (int *)pmlp__new(&s->allocator, (size_t)s->stages, sizeof *counters);
    if (!seen || !counters) {
        result = pmlp__no_memory(error, "checking a schedule");
    } else {
        result = pmlp__check_complete(s, seen, counters, error);
        memset(seen, 0, cells);
        memset(counters, 0, (size_t)s->stages * sizeof *counters);
        if (result == PMLP_OK) result = pmlp__check_order(s, seen, counters, error);
    }
    pmlp__delete(&s->allocator, seen);
    pmlp__delete(&s->allocator, counters);
    return result;
}

static void pmlp__fill_report(const pmlp_schedule *s, const int *slots, pmlp_check *report) {
    int i;
    report->peak = report->slots = 0;
    for (i = 0; i < s->workers; i++) {
        const int peak = pmlp__peak(s, i);
        if (peak > report->peak) report->peak = peak;
        if (report->peaks) report->peaks[i] = peak;
    }
    for (i = 0; i + 1 < s->stages; i++) {
        const bool crosses = pmlp__crosses(s, i, i + 1);
        const int forward = crosses ? slots[2 * i] : 0, backward = crosses ? slots[2 * i + 1] : 0;
        if (forward > report->slots) report->slots = forward;
        if (backward > report->slots) report->slots = backward;
        if (report->forward_slots) report->forward_slots[i] = forward;
        if (report->backward_slots) report->backward_slots[i] = backward;
    }
}

PMLP_API pmlp_result pmlp_schedule_check(const pmlp_schedule *s, int slots, pmlp_check *report,
                                         pmlp_error *error) {
    const bool each = report && (report->forward_slots || report->backward_slots);
    pmlp_schedule *lowered = NULL;
    int *per_edge = NULL;
    pmlp_result result;
    if (!s) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "schedule: is NULL");
    if (slots < 0) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "slots: %d is negative", slots);
    result = pmlp__check_lists(s, error);
    if (result != PMLP_OK) return result;
    result = pmlp_schedule_lower(s, &lowered, error);
    if (result != PMLP_OK) return result;
    per_edge = (int *)pmlp__new(&s->allocator, 2 * (size_t)s->stages, sizeof *per_edge);
    if (!per_edge) {
        result = pmlp__no_memory(error, "checking a schedule");
    } else if (slots == 0) {
        result = pmlp__fewest_slots(lowered, each, per_edge, error);
    } else {
        result = pmlp__replay_with(lowered, per_edge, slots, error);
    }
    if (result == PMLP_OK && report) pmlp__fill_report(s, per_edge, report);
    pmlp__delete(&s->allocator, per_edge);
    pmlp_schedule_destroy(lowered);
    return result;
}

/*============================================================================================*/
/* >>simulate: how long a schedule takes, and how it looks                                    */
/*============================================================================================*/

/* Time in a simulation: an action begins when its worker is free and what it needs is there,
   whichever is later, and ends its cost later. That is all; makespan and bubble follow. */
typedef struct pmlp__simulator {
    const pmlp_schedule *s;
    pmlp_costs costs;
    double *clock;         /* [workers] */
    double *f_end, *i_end; /* [stages][m]: when the result is there, -1 while it is not */
    double *begin, *end;   /* [actions] */
    size_t *next;          /* [workers] */
    int weights_left;
    double weights_end; /* when the last W so far ended: updates begin no earlier */
    pmlp__ready ready;
} pmlp__simulator;

static bool pmlp__bad_cost(double cost) { return !(cost >= 0.0 && cost <= DBL_MAX); }

static bool pmlp__bad_costs(const pmlp_schedule *s, const pmlp_costs *c) {
    const double *of_stages[4];
    int n, stage;
    of_stages[0] = c->f;
    of_stages[1] = c->i;
    of_stages[2] = c->w;
    of_stages[3] = c->u;
    for (n = 0; n < 4; n++)
        for (stage = 0; of_stages[n] && stage < s->stages; stage++)
            if (pmlp__bad_cost(of_stages[n][stage])) return true;
    return pmlp__bad_cost(c->transfer);
}

static void pmlp__simulator_done(pmlp__simulator *p) {
    const pmlp_allocator *allocator = &p->s->allocator;
    pmlp__delete(allocator, p->clock);
    pmlp__delete(allocator, p->f_end);
    pmlp__delete(allocator, p->i_end);
    pmlp__delete(allocator, p->begin);
    pmlp__delete(allocator, p->end);
    pmlp__delete(allocator, p->next);
    pmlp__ready_done(&p->ready, allocator);
}

static bool pmlp__simulator_init(pmlp__simulator *p, const pmlp_schedule *s,
                                 const pmlp_costs *costs) {
    const pmlp_allocator *allocator = &s->allocator;
    const size_t cells = (size_t)s->stages * (size_t)s->microbatches;
    const size_t actions = s->first[s->workers];
    size_t i;
    p->s = s;
    if (costs) p->costs = *costs;
    p->clock = (double *)pmlp__new(allocator, (size_t)s->workers, sizeof *p->clock);
    p->f_end = (double *)pmlp__new(allocator, cells, sizeof *p->f_end);
    p->i_end = (double *)pmlp__new(allocator, cells, sizeof *p->i_end);
    p->begin = (double *)pmlp__new(allocator, actions, sizeof *p->begin);
    p->end = (double *)pmlp__new(allocator, actions, sizeof *p->end);
    p->next = (size_t *)pmlp__new(allocator, (size_t)s->workers, sizeof *p->next);
    if (!pmlp__ready_init(&p->ready, allocator, s->workers) || !p->clock || !p->f_end ||
        !p->i_end || !p->begin || !p->end || !p->next) {
        pmlp__simulator_done(p);
        return false;
    }
    for (i = 0; i < cells; i++) p->f_end[i] = p->i_end[i] = -1.0;
    for (i = 0; i < (size_t)s->workers; i++) p->next[i] = s->first[i];
    for (i = 0; i < actions; i++)
        p->weights_left += (pmlp__seen_by(s->actions[i].op) & PMLP__SEEN_W) != 0;
    return true;
}

static double pmlp__cost(const double *of_stage, int stage, double otherwise) {
    return of_stage ? of_stage[stage] : otherwise;
}

static double pmlp__action_cost(const pmlp_costs *c, pmlp_action a) {
    switch (a.op) {
    case PMLP_OP_F: return pmlp__cost(c->f, a.stage, 1.0);
    case PMLP_OP_I: return pmlp__cost(c->i, a.stage, 1.0);
    case PMLP_OP_W: return pmlp__cost(c->w, a.stage, 1.0);
    case PMLP_OP_B: return pmlp__cost(c->i, a.stage, 1.0) + pmlp__cost(c->w, a.stage, 1.0);
    case PMLP_OP_U: return pmlp__cost(c->u, a.stage, 0.0);
    default: return 0.0;
    }
}

/* When what the action needs from another stage is there; -1 if that has not happened yet. */
static double pmlp__available(const pmlp__simulator *p, pmlp_action a) {
    const pmlp_schedule *s = p->s;
    const bool forward = a.op == PMLP_OP_F;
    const bool backward = a.op == PMLP_OP_I || a.op == PMLP_OP_B;
    const int from = forward ? a.stage - 1 : a.stage + 1;
    double end;
    if (a.op == PMLP_OP_U) return p->weights_left > 0 ? -1.0 : p->weights_end;
    if ((!forward && !backward) || from < 0 || from >= s->stages) return 0.0;
    end = (forward ? p->f_end : p->i_end)[pmlp__cell(s, from, a.microbatch)];
    return end < 0.0 ? end : end + (pmlp__crosses(s, a.stage, from) ? p->costs.transfer : 0.0);
}

/* One worker until it has to wait. */
static void pmlp__simulate_worker(pmlp__simulator *p, int worker) {
    const pmlp_schedule *s = p->s;
    int i;
    for (; p->next[worker] < s->first[worker + 1]; p->next[worker]++) {
        const size_t at = p->next[worker];
        const pmlp_action a = s->actions[at];
        const double available = pmlp__available(p, a);
        const double begin = available > p->clock[worker] ? available : p->clock[worker];
        const double end = begin + pmlp__action_cost(&p->costs, a);
        if (available < 0.0) return;
        p->begin[at] = begin;
        p->end[at] = p->clock[worker] = end;
        if (a.op == PMLP_OP_F) {
            p->f_end[pmlp__cell(s, a.stage, a.microbatch)] = end;
            if (a.stage + 1 < s->stages) pmlp__ready_add(&p->ready, s->stage_worker[a.stage + 1]);
        }
        if (a.op == PMLP_OP_I || a.op == PMLP_OP_B) {
            p->i_end[pmlp__cell(s, a.stage, a.microbatch)] = end;
            if (a.stage > 0) pmlp__ready_add(&p->ready, s->stage_worker[a.stage - 1]);
        }
        if (pmlp__seen_by(a.op) & PMLP__SEEN_W) {
            if (end > p->weights_end) p->weights_end = end;
            if (--p->weights_left == 0)
                for (i = 0; i < s->workers; i++) pmlp__ready_add(&p->ready, i);
        }
    }
}

/* Fills the simulator; on failure there is nothing to free. */
static pmlp_result pmlp__simulator_run(pmlp__simulator *p, const pmlp_schedule *s,
                                       const pmlp_costs *costs, pmlp_error *error) {
    int worker;
    memset(p, 0, sizeof *p);
    if (!s) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "schedule: is NULL");
    if (pmlp__is_sparse(s, error)) return PMLP_ERROR_SCHEDULE;
    if (costs && pmlp__bad_costs(s, costs))
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "costs: are not finite numbers >= 0");
    if (!pmlp__simulator_init(p, s, costs)) return pmlp__no_memory(error, "simulating a schedule");
    while (p->ready.count > 0) pmlp__simulate_worker(p, pmlp__ready_take(&p->ready));
    for (worker = 0; worker < s->workers; worker++)
        if (p->next[worker] < s->first[worker + 1]) {
            const pmlp_action a = s->actions[p->next[worker]];
            pmlp__simulator_done(p);
            return pmlp__check_fail(error, PMLP_ERROR_DEADLOCK, worker, a,
                                    "worker %d can never do %s: what it needs does not come",
                                    worker, pmlp__action_label(a).text);
        }
    return PMLP_OK;
}

static pmlp_simulation pmlp__simulation_of(const pmlp__simulator *p) {
    const pmlp_schedule *s = p->s;
    pmlp_simulation sim = {0.0, 0.0, 0.0};
    double work = 0.0;
    int worker;
    size_t i;
    for (worker = 0; worker < s->workers; worker++) {
        double busy = 0.0;
        for (i = s->first[worker]; i < s->first[worker + 1]; i++)
            busy += pmlp__action_cost(&p->costs, s->actions[i]);
        if (busy > sim.busiest) sim.busiest = busy;
        if (p->clock[worker] > sim.makespan) sim.makespan = p->clock[worker];
        work += busy;
    }
    if (sim.makespan > 0.0) sim.bubble = 1.0 - work / (sim.makespan * (double)s->workers);
    return sim;
}

PMLP_API pmlp_result pmlp_schedule_simulate(const pmlp_schedule *s, const pmlp_costs *costs,
                                            double *begin, pmlp_simulation *simulation,
                                            pmlp_error *error) {
    pmlp__simulator p;
    const pmlp_result result = pmlp__simulator_run(&p, s, costs, error);
    if (result != PMLP_OK) return result;
    if (begin) memcpy(begin, p.begin, s->first[s->workers] * sizeof *begin);
    if (simulation) *simulation = pmlp__simulation_of(&p);
    pmlp__simulator_done(&p);
    return PMLP_OK;
}

/* Label of an action in a drawing: without the stage if each worker has only one. */
static int pmlp__draw_label(const pmlp_schedule *s, pmlp_action a, char *label, size_t size) {
    pmlp__text text;
    text.buffer = label;
    text.size = size;
    text.length = 0;
    pmlp__put_action(&text, a, s->stages > s->workers);
    pmlp__text_end(&text, NULL);
    return (int)text.length;
}

/* One worker's row: cell c shows what runs at the middle of the time that it stands for. */
static void pmlp__draw_worker(const pmlp__simulator *p, int worker, double unit, int cells,
                              int width, pmlp__text *text) {
    const pmlp_schedule *s = p->s;
    size_t at = s->first[worker], labelled = SIZE_MAX;
    int c, i;
    pmlp__put(text, "worker %-3d|", worker);
    for (c = 0; c < cells; c++) {
        const double middle = ((double)c + 0.5) * unit;
        char label[48];
        while (at < s->first[worker + 1] && p->end[at] <= middle) at++;
        if (at == s->first[worker + 1] || p->begin[at] > middle) {
            for (i = 0; i < width; i++) label[i] = '.';
            label[width] = '\0';
        } else if (labelled == at) {
            for (i = 0; i < width; i++) label[i] = '=';
            label[width] = '\0';
        } else {
            pmlp__draw_label(s, s->actions[at], label, sizeof label);
            labelled = at;
        }
        pmlp__put(text, " %-*s", width, label);
    }
    pmlp__put(text, " |\n");
}

PMLP_API pmlp_result pmlp_schedule_draw(const pmlp_schedule *s, const pmlp_costs *costs,
                                        double unit, char *buffer, size_t size, size_t *length,
                                        pmlp_error *error) {
    pmlp__simulator p;
    pmlp__text text;
    pmlp_result result;
    double cells;
    int worker, width = 2;
    size_t i;
    if (!buffer && size > 0) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "buffer: is NULL");
    if (unit == 0.0) unit = 1.0;
    if (!(unit > 0.0))
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "unit: %g is not positive", unit);
    result = pmlp__simulator_run(&p, s, costs, error);
    if (result != PMLP_OK) return result;
    cells = ceil(pmlp__simulation_of(&p).makespan / unit - 1e-9);
    if (!(cells <= 1e6)) {
        pmlp__simulator_done(&p);
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT,
                          "unit: %g would make more than a million cells", unit);
    }
    text.buffer = buffer;
    text.size = size;
    text.length = 0;
    for (i = 0; i < s->first[s->workers]; i++) {
        char label[48];
        const int n = pmlp__draw_label(s, s->actions[i], label, sizeof label);
        if (pmlp__action_cost(&p.costs, s->actions[i]) > 0.0 && n > width) width = n;
    }
    for (worker = 0; worker < s->workers; worker++)
        pmlp__draw_worker(&p, worker, unit, (int)cells, width, &text);
    pmlp__text_end(&text, length);
    pmlp__simulator_done(&p);
    return PMLP_OK;
}

/*============================================================================================*/
/* >>edges: between threads of one process                                                    */
/*============================================================================================*/

/* A queue of at most `slots` messages between two threads, of which only the counts exist: how many
   were sent, how many received. Each count is written by one side only. The data needs no queue,
   because both sides work in one buffer that holds a row for each row of the batch. */
typedef struct pmlp__thread_edge {
    pmlp_edge_desc desc;
    char gap0[128]; /* the two ends write to cache lines of their own */
    pmlp__atomic sent;
    char gap1[128];
    pmlp__atomic received;
    char gap2[128];
} pmlp__thread_edge;

static pmlp_result pmlp__thread_connect(const pmlp_edges *self, const pmlp_edge_desc *desc,
                                        void **edge, pmlp_error *error) {
    pmlp__thread_edge *e = (pmlp__thread_edge *)pmlp__new(&desc->allocator, 1, sizeof *e);
    (void)self;
    if (!e) return pmlp__no_memory(error, "an edge");
    e->desc = *desc;
    *edge = e;
    return PMLP_OK;
}

static void pmlp__thread_disconnect(void *edge) {
    const pmlp_allocator allocator = ((pmlp__thread_edge *)edge)->desc.allocator;
    pmlp__delete(&allocator, edge);
}

static pmlp_result pmlp__thread_reset(void *edge) {
    pmlp__thread_edge *e = (pmlp__thread_edge *)edge;
    pmlp__store(&e->sent, 0);
    pmlp__store(&e->received, 0);
    return PMLP_OK;
}

/* The data is where the receiver looks for it already; only the count of messages travels. */
static pmlp_result pmlp__thread_send(void *edge, int microbatch, const void *data, size_t bytes) {
    pmlp__thread_edge *e = (pmlp__thread_edge *)edge;
    const int sent = pmlp__load(&e->sent);
    (void)microbatch;
    (void)data;
    (void)bytes;
    if (sent - pmlp__load(&e->received) >= e->desc.slots) return PMLP_BUSY;
    pmlp__store(&e->sent, sent + 1);
    e->desc.wake(e->desc.to_wake);
    return PMLP_OK;
}

static pmlp_result pmlp__thread_receive(void *edge, int microbatch, void *data, size_t bytes) {
    pmlp__thread_edge *e = (pmlp__thread_edge *)edge;
    const int received = pmlp__load(&e->received);
    (void)microbatch;
    (void)data;
    (void)bytes;
    if (pmlp__load(&e->sent) == received) return PMLP_BUSY;
    pmlp__store(&e->received, received + 1);
    e->desc.wake(e->desc.from_wake);
    return PMLP_OK;
}

static const pmlp_edges pmlp__thread_edges_table = {
    PMLP_EDGES_ABI, (uint32_t)sizeof(pmlp_edges), "threads", NULL, true, pmlp__thread_connect,
    pmlp__thread_disconnect, pmlp__thread_reset, pmlp__thread_send, pmlp__thread_receive};

PMLP_API const pmlp_edges *pmlp_thread_edges(void) { return &pmlp__thread_edges_table; }

/*============================================================================================*/
/* >>model                                                                                    */
/*============================================================================================*/

struct pmlp_model {
    pmlp_model_desc desc;        /* resolved; sizes and activations are the model's own */
    int *sizes;                  /* [layers + 1] */
    pmlp_activation *activations; /* [layers] */
    float **w, **b;              /* [layers], into params */
    float *params;               /* all layers: w, b, w, b, ... */
    size_t param_count;
    pmlp_trainer *trainer; /* the owner of the weights, or NULL */
    bool stale;            /* the trainer has stepped since its last sync */
};

static size_t pmlp__n_in(const pmlp_model *model, int layer) { return (size_t)model->sizes[layer]; }
static size_t pmlp__n_out(const pmlp_model *model, int layer) {
    return (size_t)model->sizes[layer + 1];
}

static pmlp_result pmlp__model_check_desc(const pmlp_model_desc *d, pmlp_error *error) {
    int l;
    if (!d) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "desc: is NULL");
    if (d->layers < 1 || d->layers > 1 << 20)
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "layers: %d is not in 1 .. %d", d->layers,
                          1 << 20);
    if (!d->sizes) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "sizes: is NULL");
    for (l = 0; l <= d->layers; l++)
        if (d->sizes[l] < 1)
            return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "sizes[%d]: %d is less than 1", l,
                              d->sizes[l]);
    for (l = 0; d->activations && l < d->layers; l++)
        if ((int)d->activations[l] < 0 || d->activations[l] >= PMLP_ACTIVATION_COUNT)
            return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "activations[%d]: %d is no activation", l,
                              (int)d->activations[l]);
    if ((int)d->hidden < 0 || d->hidden >= PMLP_ACTIVATION_COUNT)
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "hidden: %d is no activation",
                          (int)d->hidden);
    if ((int)d->output < 0 || d->output >= PMLP_ACTIVATION_COUNT)
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "output: %d is no activation",
                          (int)d->output);
    if ((int)d->loss < 0 || d->loss >= PMLP_LOSS_COUNT)
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "loss: %d is no loss", (int)d->loss);
    if ((int)d->init < 0 || d->init >= PMLP_INIT_COUNT)
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "init: %d is no way to begin", (int)d->init);
    return PMLP_OK;
}

static pmlp_activation pmlp__activation_of(const pmlp_model_desc *d, int layer) {
    const bool last = layer == d->layers - 1;
    pmlp_activation f = d->activations ? d->activations[layer] : last ? d->output : d->hidden;
    return f != PMLP_ACTIVATION_DEFAULT ? f : last ? PMLP_LINEAR : PMLP_RELU;
}

/* Uniform in [-limit, limit), each element from its own place (layer, element) of the generator. */
static void pmlp__init_layer(const pmlp_model *model, int layer) {
    const size_t n_in = pmlp__n_in(model, layer), n = n_in * pmlp__n_out(model, layer);
    const pmlp_activation f = model->activations[layer];
    const bool he = model->desc.init == PMLP_INIT_HE ||
                    (model->desc.init == PMLP_INIT_DEFAULT && (f == PMLP_RELU || f == PMLP_GELU));
    const double fan = (double)n_in + (he ? 0.0 : (double)pmlp__n_out(model, layer));
    const float limit = (float)sqrt(6.0 / fan);
    uint32_t random[4];
    size_t i;
    for (i = 0; i < n; i++) {
        if (i % 4 == 0)
            pmlp__philox(model->desc.seed, i / 4, PMLP__STREAM_WEIGHTS + (uint64_t)layer, random);
        model->w[layer][i] = limit * ((float)(random[i % 4] >> 8) * (1.0f / 8388608.0f) - 1.0f);
    }
}

PMLP_API void pmlp_model_destroy(pmlp_model *model) {
    pmlp_allocator allocator;
    if (!model) return;
    allocator = model->desc.allocator;
    pmlp__delete(&allocator, model->sizes);
    pmlp__delete(&allocator, model->activations);
    pmlp__delete(&allocator, model->w);
    pmlp__delete(&allocator, model->b);
    pmlp__delete(&allocator, model->params);
    pmlp__delete(&allocator, model);
}

/* Everything but the weights' values. */
static pmlp_model *pmlp__model_new(const pmlp_model_desc *desc) {
    const pmlp_allocator *allocator = &desc->allocator;
    const size_t layers = (size_t)desc->layers;
    pmlp_model *m = (pmlp_model *)pmlp__new(allocator, 1, sizeof *m);
    size_t at = 0;
    int l;
    if (!m) return NULL;
    m->desc = *desc;
    m->sizes = (int *)pmlp__new(allocator, layers + 1, sizeof *m->sizes);
    m->activations = (pmlp_activation *)pmlp__new(allocator, layers, sizeof *m->activations);
    m->w = (float **)pmlp__new(allocator, layers, sizeof *m->w);
    m->b = (float **)pmlp__new(allocator, layers, sizeof *m->b);
    if (!m->sizes || !m->activations || !m->w || !m->b) goto no_memory;
    memcpy(m->sizes, desc->sizes, (layers + 1) * sizeof *m->sizes);
    for (l = 0; l < desc->layers; l++) {
        const size_t n_in = pmlp__n_in(m, l), n_out = pmlp__n_out(m, l);
        m->activations[l] = pmlp__activation_of(desc, l);
        if (pmlp__mul_overflows(n_in + 1, n_out) ||
            (n_in + 1) * n_out > SIZE_MAX / 16 - m->param_count)
            goto no_memory;
        m->param_count += (n_in + 1) * n_out;
    }
    m->params = (float *)pmlp__new(allocator, m->param_count, sizeof *m->params);
    if (!m->params) goto no_memory;
    for (l = 0; l < desc->layers; l++) {
        m->w[l] = m->params + at;
        m->b[l] = m->w[l] + pmlp__n_in(m, l) * pmlp__n_out(m, l);
        at += (pmlp__n_in(m, l) + 1) * pmlp__n_out(m, l);
    }
    m->desc.sizes = m->sizes;
    m->desc.activations = m->activations;
    m->desc.hidden = m->activations[0];
    m->desc.output = m->activations[layers - 1];
    if (m->desc.loss == PMLP_LOSS_DEFAULT) m->desc.loss = PMLP_LOSS_XENT;
    return m;
no_memory:
    pmlp_model_destroy(m);
    return NULL;
}

PMLP_API pmlp_result pmlp_model_create(const pmlp_model_desc *desc, pmlp_model **model,
                                       pmlp_error *error) {
    pmlp_result result;
    int l;
    if (!model) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "model: is NULL");
    *model = NULL;
    result = pmlp__model_check_desc(desc, error);
    if (result != PMLP_OK) return result;
    if (pmlp__is_half(&desc->allocator))
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "allocator: has only one of alloc and free");
    *model = pmlp__model_new(desc);
    if (!*model) return pmlp__no_memory(error, "a model's weights");
    for (l = 0; l < desc->layers; l++) pmlp__init_layer(*model, l);
    return PMLP_OK;
}

PMLP_API pmlp_model_desc pmlp_model_query_desc(const pmlp_model *model) {
    pmlp_model_desc nothing;
    memset(&nothing, 0, sizeof nothing);
    return model ? model->desc : nothing;
}

PMLP_API size_t pmlp_model_param_count(const pmlp_model *model) {
    return model ? model->param_count : 0;
}

/* A model whose weights may be looked at. */
static pmlp_result pmlp__model_readable(const pmlp_model *model, pmlp_error *error) {
    if (!model) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "model: is NULL");
    if (!model->stale) return PMLP_OK;
    return pmlp__fail(error, PMLP_ERROR_STATE,
                      model->trainer
                          ? "the model's weights are with its trainer: call pmlp_trainer_sync()"
                          : "the model's weights are lost: its trainer failed amid an update");
}

PMLP_API pmlp_result pmlp_model_params(pmlp_model *model, int layer, pmlp_params *params,
                                       pmlp_error *error) {
    const pmlp_result result = pmlp__model_readable(model, error);
    if (result != PMLP_OK) return result;
    if (!params) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "params: is NULL");
    if (layer < 0 || layer >= model->desc.layers)
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "layer: %d is not in 0 .. %d", layer,
                          model->desc.layers - 1);
    params->n_in = pmlp__n_in(model, layer);
    params->n_out = pmlp__n_out(model, layer);
    params->activation = model->activations[layer];
    params->w = model->w[layer];
    params->b = model->b[layer];
    return PMLP_OK;
}

PMLP_API pmlp_result pmlp_model_hash(const pmlp_model *model, uint64_t *hash, pmlp_error *error) {
    const pmlp_result result = pmlp__model_readable(model, error);
    if (result != PMLP_OK) return result;
    if (!hash) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "hash: is NULL");
    *hash = pmlp_hash(0, model->params, model->param_count * sizeof *model->params);
    return PMLP_OK;
}

PMLP_API pmlp_result pmlp_model_clone(const pmlp_model *model, pmlp_model **clone,
                                      pmlp_error *error) {
    pmlp_result result;
    if (!clone) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "clone: is NULL");
    *clone = NULL;
    result = pmlp__model_readable(model, error);
    if (result != PMLP_OK) return result;
    *clone = pmlp__model_new(&model->desc);
    if (!*clone) return pmlp__no_memory(error, "a model's weights");
    memcpy((*clone)->params, model->params, model->param_count * sizeof *model->params);
    return PMLP_OK;
}

static pmlp_layer_desc pmlp__layer_desc(const pmlp_model *model, int layer,
                                        pmlp_optimizer optimizer) {
    pmlp_layer_desc d;
    d.n_in = pmlp__n_in(model, layer);
    d.n_out = d.row_outs = pmlp__n_out(model, layer);
    d.first_out = 0;
    d.activation = model->activations[layer];
    d.below = layer > 0 ? model->activations[layer - 1] : PMLP_LINEAR;
    d.optimizer = optimizer;
    d.needs_input_gradient = layer > 0;
    return d;
}

/* The layers, and two buffers that take turns as their input and output. */
typedef struct pmlp__predictor {
    const pmlp_model *model;
    const pmlp_backend *cpu;
    void *context, **layers;
    void *buffers[2];
    size_t rows; /* that the buffers hold */
} pmlp__predictor;

#define PMLP__PREDICT_ROWS ((size_t)256)

static void pmlp__predictor_done(pmlp__predictor *p) {
    int l;
    for (l = 0; p->layers && l < p->model->desc.layers; l++)
        if (p->layers[l]) p->cpu->layer_destroy(p->context, p->layers[l]);
    pmlp__delete(&p->model->desc.allocator, p->layers);
    for (l = 0; l < 2; l++)
        if (p->buffers[l]) p->cpu->free(p->context, p->buffers[l]);
    if (p->context) p->cpu->close(p->context);
}

static pmlp_result pmlp__predictor_init(pmlp__predictor *p, const pmlp_model *model, size_t rows) {
    const int layers = model->desc.layers;
    pmlp_backend_desc open;
    pmlp_result result;
    size_t row = 0;
    int l;
    memset(p, 0, sizeof *p);
    p->model = model;
    p->cpu = pmlp_cpu_backend();
    p->rows = rows < PMLP__PREDICT_ROWS ? rows : PMLP__PREDICT_ROWS;
    open.worker = 0;
    open.workers = 1;
    open.allocator = model->desc.allocator;
    result = p->cpu->open(p->cpu, &open, &p->context, NULL);
    p->layers = (void **)pmlp__new(&model->desc.allocator, (size_t)layers, sizeof *p->layers);
    if (result == PMLP_OK && !p->layers) result = PMLP_ERROR_MEMORY;
    for (l = 0; result == PMLP_OK && l <= layers; l++) {
        const pmlp_activation below = l > 0 ? model->activations[l - 1] : PMLP_LINEAR;
        const size_t n = p->cpu->row_floats(p->context, (size_t)model->sizes[l], below);
        if (n > row) row = n;
        if (l < layers) {
            pmlp_layer_desc d = pmlp__layer_desc(model, l, PMLP_SGD);
            d.needs_input_gradient = false;
            result = p->cpu->layer_create(p->context, &d, &p->layers[l]);
            if (result == PMLP_OK)
                result = p->cpu->write(p->context, p->layers[l], PMLP_TENSOR_PARAMS, model->w[l],
                                       model->b[l]);
        }
    }
    for (l = 0; result == PMLP_OK && l < 2; l++)
        result = p->cpu->alloc(p->context, p->rows * row * sizeof(float), &p->buffers[l]);
    return result;
}

static pmlp_result pmlp__predict_rows(pmlp__predictor *p, const float *x, size_t first, size_t rows,
                                      float *y) {
    const pmlp_model *model = p->model;
    const int layers = model->desc.layers;
    const size_t n = pmlp__n_out(model, layers - 1);
    const size_t row = p->cpu->row_floats(p->context, n, model->activations[layers - 1]);
    float *in = (float *)p->buffers[0], *out = (float *)p->buffers[1];
    pmlp_result result = p->cpu->input(p->context, rows, pmlp__n_in(model, 0), x, NULL, first, in);
    size_t i;
    int l;
    for (l = 0; result == PMLP_OK && l < layers; l++) {
        float *read = out;
        result = p->cpu->forward(p->context, p->layers[l], rows, in, out);
        out = in;
        in = read;
    }
    for (i = 0; result == PMLP_OK && i < rows; i++) {
        float *to = y + (first + i) * n, max;
        memcpy(to, in + i * row, n * sizeof *to);
        if (model->desc.loss == PMLP_LOSS_XENT) pmlp__softmax(to, n, to, &max);
    }
    return result;
}

PMLP_API pmlp_result pmlp_model_predict(const pmlp_model *model, const float *x, size_t rows,
                                        float *y, pmlp_error *error) {
    pmlp__predictor p;
    size_t done, n;
    pmlp_result result = pmlp__model_readable(model, error);
    if (result != PMLP_OK) return result;
    if (!x || !y) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "%s: is NULL", x ? "y" : "x");
    result = pmlp__predictor_init(&p, model, rows);
    for (done = 0; result == PMLP_OK && done < rows; done += n) {
        n = rows - done < p.rows ? rows - done : p.rows;
        result = pmlp__predict_rows(&p, x, done, n, y);
    }
    pmlp__predictor_done(&p);
    return result == PMLP_OK ? PMLP_OK : pmlp__no_memory(error, "predicting");
}

/*============================================================================================*/
/* >>partition                                                                                */
/*============================================================================================*/

/* Multiply-adds per row of one output of a layer: F, I, W; the first layer's I is never needed. */
static double pmlp__output_cost(const pmlp_model *model, int layer) {
    return (layer == 0 ? 2.0 : 3.0) * (double)pmlp__n_in(model, layer);
}

/* Dynamic programming over places and stages: the best way to make S - s stages of what lies above
   place i is to end the first of them at the place e for which the costlier of (i .. e) and the
   best of the rest is cheapest. */
/* A place where a boundary may lie, with the cost of all that is below it. */
typedef struct pmlp__place {
    pmlp_cut cut;
    double below;
} pmlp__place;

/* All of them in ascending order, from {0, 0} to {layers, 0}; returns how many. places may be
   NULL. */
static size_t pmlp__places(const pmlp_model *model, bool whole_layers, pmlp__place *places) {
    double below = 0.0;
    size_t count = 0, column;
    int l;
    for (l = 0; l <= model->desc.layers; l++) {
        const bool top = l == model->desc.layers;
        const size_t outputs = top ? 0 : pmlp__n_out(model, l);
        const double each = top ? 0.0 : pmlp__output_cost(model, l);
        const size_t cuttable = l == 0 && !whole_layers ? outputs : 1;
        for (column = 0; column < cuttable; column += PMLP_COLUMN_STEP, count++) {
            if (!places) continue;
            places[count].cut.layer = l;
            places[count].cut.column = (int)column;
            places[count].below = below + (double)column * each;
        }
        below += (double)outputs * each;
    }
    return count;
}

/* best[s][i]: the smallest possible largest cost when all above place i makes S - s stages;
   end[s][i]: where the first of these ends. Filled from the last stage down. */
static void pmlp__partition_table(const pmlp__place *places, size_t count, size_t stages,
                                  double *best, size_t *end) {
    size_t s = stages, i, e;
    while (s-- > 0)
        for (i = s; i + (stages - s) < count; i++) {
            const size_t after = stages - 1 - s; /* stages that still need a place each */
            const size_t lowest = after ? i + 1 : count - 1;
            double *at = &best[s * count + i];
            *at = HUGE_VAL;
            for (e = lowest; e < count - after; e++) {
                const double own = places[e].below - places[i].below;
                const double rest = after ? best[(s + 1) * count + e] : 0.0;
                const double worst = own > rest ? own : rest;
                if (own >= *at) break; /* it only grows */
                if (worst >= *at) continue;
                *at = worst;
                end[s * count + i] = e;
            }
        }
}

PMLP_API pmlp_result pmlp_partition(const pmlp_model *model, int stages, bool whole_layers,
                                    pmlp_cut *cuts, double *balance, pmlp_error *error) {
    pmlp__place *places;
    double *best;
    size_t *end, count, i = 0;
    bool ok;
    int s;
    if (!model) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "model: is NULL");
    if (stages < 1)
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "stages: %d is less than 1", stages);
    if (!cuts && stages > 1) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "cuts: is NULL");
    count = pmlp__places(model, whole_layers, NULL);
    if ((size_t)stages >= count)
        return pmlp__fail(error, PMLP_ERROR_SHAPE,
                          "the %d layers of the model can be cut into %d stages at most, not %d",
                          model->desc.layers, (int)count - 1, stages);
    places = (pmlp__place *)pmlp__new(&model->desc.allocator, count, sizeof *places);
    best = (double *)pmlp__new(&model->desc.allocator, count * (size_t)stages, sizeof *best);
    end = (size_t *)pmlp__new(&model->desc.allocator, count * (size_t)stages, sizeof *end);
    ok = places && best && end;
    if (ok) {
        pmlp__places(model, whole_layers, places);
        pmlp__partition_table(places, count, (size_t)stages, best, end);
        for (s = 0; s < stages - 1; s++) {
            i = end[(size_t)s * count + i];
            cuts[s] = places[i].cut;
        }
        if (balance) *balance = places[count - 1].below / (best[0] * (double)stages);
    }
    pmlp__delete(&model->desc.allocator, places);
    pmlp__delete(&model->desc.allocator, best);
    pmlp__delete(&model->desc.allocator, end);
    return ok ? PMLP_OK : pmlp__no_memory(error, "cutting the model");
}

/*============================================================================================*/
/* >>validation: what a trainer's desc may not say; every problem is named, not only the first */
/*============================================================================================*/

typedef struct pmlp__problems {
    pmlp__text text;
    pmlp_result first;
} pmlp__problems;

static void pmlp__problem(pmlp__problems *p, bool bad, pmlp_result result, const char *field,
                          const char *why) {
    if (!bad) return;
    if (p->first == PMLP_OK) p->first = result;
    else pmlp__put(&p->text, "; ");
    pmlp__put(&p->text, "%s: ", field);
    pmlp__put(&p->text, "%s", why);
}

static bool pmlp__below_zero(float v) { return !(v >= 0.0f && v <= FLT_MAX); }

static bool pmlp__cut_is_valid(const pmlp_model *model, bool whole_layers, const pmlp_cut *before,
                               const pmlp_cut *cut) {
    const pmlp_cut begin = {0, 0};
    if (!before) before = &begin;
    if (cut->layer < 0 || cut->layer >= model->desc.layers) return false;
    if (cut->layer > 0) return cut->column == 0 && cut->layer > before->layer;
    return !whole_layers && cut->column % PMLP_COLUMN_STEP == 0 && cut->column > before->column &&
           (size_t)cut->column < pmlp__n_out(model, 0);
}

static bool pmlp__is_whole_backend(const pmlp_backend *b) {
    return b->name && b->open && b->close && b->alloc && b->free && b->row_floats &&
           b->layer_create && b->layer_destroy && b->write && b->read && b->input && b->forward &&
           b->backward_input && b->backward_weight && b->loss && b->gradient_squares && b->update &&
           b->synchronize;
}

static bool pmlp__is_whole_edges(const pmlp_edges *e) {
    return e->connect && e->disconnect && e->reset && e->send && e->receive;
}

static pmlp_result pmlp__validate_trainer(const pmlp_model *model, const pmlp_trainer_desc *d,
                                          pmlp_error *error) {
    static const char number[] = "is not a finite number >= 0";
    const pmlp_edges *edges = d->edges;
    char text[sizeof error->text] = "";
    pmlp__problems p;
    int i, stages;
    p.first = PMLP_OK;
    p.text.buffer = text;
    p.text.size = sizeof text;
    p.text.length = 0;
#  define PMLP__BAD(condition, field, why)                                                         \
    pmlp__problem(&p, condition, PMLP_ERROR_ARGUMENT, field, why)
    PMLP__BAD(d->workers < 0 || d->workers > PMLP__MAX_WORKERS, "workers", "is not in 1 .. 16384");
    PMLP__BAD(d->microbatches < 0 || d->microbatches > PMLP__MAX_MICROBATCHES, "microbatches",
              "is not in 1 .. 1048576");
    PMLP__BAD(d->batch > UINT32_MAX / 2, "batch", "is more than 2147483647 rows");
    PMLP__BAD((int)d->schedule < 0 || d->schedule >= PMLP_SCHEDULE_KIND_COUNT, "schedule",
              "is no schedule");
    PMLP__BAD((int)d->optimizer < 0 || d->optimizer >= PMLP_OPTIMIZER_COUNT, "optimizer",
              "is no optimizer");
    PMLP__BAD(pmlp__below_zero(d->learning_rate), "learning_rate", number);
    PMLP__BAD(pmlp__below_zero(d->momentum), "momentum", number);
    PMLP__BAD(!(d->beta1 >= 0.0f && d->beta1 < 1.0f), "beta1", "is not in 0 .. 1");
    PMLP__BAD(!(d->beta2 >= 0.0f && d->beta2 < 1.0f), "beta2", "is not in 0 .. 1");
    PMLP__BAD(pmlp__below_zero(d->epsilon), "epsilon", number);
    PMLP__BAD(pmlp__below_zero(d->weight_decay), "weight_decay", number);
    PMLP__BAD(pmlp__below_zero(d->clip_norm), "clip_norm", number);
    PMLP__BAD(d->slots < 0, "slots", "is negative");
    PMLP__BAD(pmlp__is_half(&d->allocator), "allocator", "has only one of alloc and free");
    PMLP__BAD(d->backend && (d->backend->abi != PMLP_BACKEND_ABI ||
                             d->backend->size != (uint32_t)sizeof(pmlp_backend)),
              "backend", "was built for another version of pipemlp.h");
    if (!edges && p.first == PMLP_OK && d->backend) edges = d->backend->edges;
    PMLP__BAD(edges && (edges->abi != PMLP_EDGES_ABI ||
                        edges->size != (uint32_t)sizeof(pmlp_edges)),
              "edges", "was built for another version of pipemlp.h");
    PMLP__BAD(p.first == PMLP_OK && d->backend && !pmlp__is_whole_backend(d->backend), "backend",
              "has an entry that is NULL");
    PMLP__BAD(p.first == PMLP_OK && edges && !pmlp__is_whole_edges(edges), "edges",
              "has an entry that is NULL");
#undef PMLP__BAD
    stages = d->custom ? d->custom->stages : d->workers ? d->workers : 1;
    pmlp__problem(&p, !d->cuts && stages > 0 &&
                          (size_t)stages >= pmlp__places(model, d->whole_layers, NULL),
                  PMLP_ERROR_SHAPE, "workers", "more stages than the layers can be cut into");
    for (i = 0; d->cuts && i < stages - 1; i++)
        if (!pmlp__cut_is_valid(model, d->whole_layers, i ? &d->cuts[i - 1] : NULL, &d->cuts[i])) {
            pmlp__problem(&p, true, PMLP_ERROR_ARGUMENT, "cuts",
                          "are not ascending places inside the model");
            break;
        }
    pmlp__problem(&p, model->trainer != NULL, PMLP_ERROR_STATE, "model", "has a trainer already");
    pmlp__text_end(&p.text, NULL);
    if (p.first == PMLP_OK) return PMLP_OK;
    return pmlp__fail(error, p.first, "%s", text);
}

static pmlp_result pmlp__validate_data(const pmlp_model *model, const pmlp_data *data,
                                       pmlp_error *error) {
    const size_t classes = pmlp__n_out(model, model->desc.layers - 1);
    size_t i;
    if (!data) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "data: is NULL");
    if (!data->x) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "data: x is NULL");
    if (data->rows < 1 || data->rows > UINT32_MAX / 2)
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "data: %.0f rows are not in 1 .. 2147483647",
                          (double)data->rows);
    if (model->desc.loss == PMLP_LOSS_XENT && !data->labels)
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "data: cross-entropy needs labels");
    if (model->desc.loss == PMLP_LOSS_XENT && data->targets)
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT,
                          "data: cross-entropy takes labels, not targets");
    if (!data->labels && !data->targets)
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "data: has neither labels nor targets");
    for (i = 0; data->labels && i < data->rows; i++)
        if (data->labels[i] < 0 || (size_t)data->labels[i] >= classes)
            return pmlp__fail(error, PMLP_ERROR_DATA,
                              "data: the label %d of row %.0f is not in 0 .. %d", data->labels[i],
                              (double)i, (int)classes - 1);
    return PMLP_OK;
}

/*============================================================================================*/
/* >>stage: some layers, their weights and a batch's activations                              */
/*                                                                                            */
/* For a stage of n layers, x[0] is its input, x[l + 1] the output of its layer l, dz[l + 1]  */
/* the gradient at that layer's z and dz[0] the gradient at the z of the layer below, which   */
/* goes to the stage below. All hold a whole batch of rows; a micro-batch is a range of them. */
/* Hence memory is that of a whole batch whatever the schedule, W may be done for several     */
/* micro-batches at once, and neighbours in one process share the lower one's x[n] and dz[n]. */
/* To the upper one these are x[below] and dz[below]: 0, or 1 if the boundary lies inside     */
/* layer 0, of which it then computes the other columns into the same rows.                   */
/*============================================================================================*/

typedef struct pmlp__stage {
    int index, worker, first_layer, layers;
    size_t first_column, columns; /* of its first layer: all, unless that is layer 0, cut inside */
    int below;                    /* what the stage below hands over: x[below], for dz[below] */
    bool is_last;
    void **handles;    /* [layers]: the back end's layers */
    float **x, **dz;   /* [layers + 1] */
    bool *owns_x, *owns_dz;
    size_t *row;       /* [layers + 1]: floats from row to row of x[l] and dz[l] */
    void *send_f, *recv_f, *send_b, *recv_b; /* edges; NULL inside one worker */
    int w_begin, w_end; /* micro-batches whose W is put off; none if begin = end */
} pmlp__stage;

typedef struct pmlp__worker {
    pmlp_trainer *trainer;
    int index;
    void *context;          /* the back end's */
    const pmlp_action *list;
    int count, next;
    int w_pending; /* stages of this worker whose W is put off */
    double begun, finished, blocked_since, blocked; /* seconds, of the present pass */
    double busy;            /* seconds, of the present call */

    pmlp__mutex mutex;      /* for sleeping only */
    pmlp__cond cond;
    bool has_mutex, has_cond, has_thread;
    pmlp__atomic sleeping;
    pmlp__thread thread;
    pmlp__thread_start start;
    char gap[128];
} pmlp__worker;

struct pmlp_trainer {
    pmlp_trainer_desc desc; /* resolved */
    pmlp_model *model;
    const pmlp_backend *backend;
    const pmlp_edges *edges;
    pmlp_schedule *schedule, *lowered, *forward;
    pmlp_cut *cuts;         /* [stages - 1], and one more that is unused */
    pmlp__stage *stages;
    pmlp__worker *workers;
    void **connected;       /* all edges, for reset */
    int connected_count, spins;
    bool polled;            /* the edges do not wake anybody */

    /* the present pass, written before the workers start */
    const pmlp_data *data;
    const uint32_t *index;  /* of the batch's rows in data, or NULL: first, first + 1, ... */
    size_t first, rows;
    bool training;
    double *row_loss;       /* [batch] */
    unsigned char *row_hit; /* [batch] */
    double *squares;        /* [all neurons]: the gradient's squares, layer by layer */
    size_t *squares_at;     /* [layers] */

    pmlp__atomic pass, done, failed, stop, in_use;
    pmlp__atomic gathered;  /* stages that have all gradients of the step */
    pmlp__atomic gate;      /* 1 when all have: updates may begin */
    pmlp__atomic updating;  /* 1 when one has begun: a failure now leaves the weights mixed */
    pmlp__atomic no_query;  /* 0 while the progress callback runs: it may ask, one call at a time */

    uint32_t *order;        /* of the rows, in an epoch */
    size_t order_size;
    uint64_t step, epoch;
    double gradient_norm;
    double *idle;           /* [workers] */
    pmlp_error error;       /* of the last call that failed */
    pmlp_error failure;     /* of the pipeline; written by the worker that sets `failed` first */
};

/* Where a micro-batch begins: m parts that differ by one row at most, for any number of rows; with
   fewer rows than micro-batches some parts are empty, and their actions do nothing. */
static size_t pmlp__row_of(const pmlp_trainer *t, int microbatch) {
    return (size_t)((uint64_t)t->rows * (uint64_t)microbatch / (uint64_t)t->schedule->microbatches);
}

/* The stages that have layer 0, or some of it, read the input rows; nobody needs the gradient of
   these. */
static bool pmlp__reads_input(const pmlp__stage *stage) { return stage->first_layer == 0; }

static void *pmlp__context_of(const pmlp_trainer *t, const pmlp__stage *stage) {
    return t->workers[stage->worker].context;
}

/* --- operations: each returns the back end's result ------------------------------------------- */

static pmlp_result pmlp__stage_loss(pmlp_trainer *t, pmlp__stage *stage, size_t from, size_t rows) {
    const int n = stage->layers;
    pmlp_loss_args args;
    args.loss = t->model->desc.loss;
    args.rows = rows;
    args.y = stage->x[n] + from * stage->row[n];
    args.data = t->data;
    args.index = t->index ? t->index + from : NULL;
    args.first = t->first + from;
    args.scale = 1.0f / (float)t->rows;
    args.dz = t->training ? stage->dz[n] + from * stage->row[n] : NULL;
    args.row_loss = t->row_loss + from;
    args.row_hit = t->row_hit + from;
    return t->backend->loss(pmlp__context_of(t, stage), stage->handles[n - 1], &args);
}

/* F: the input for the first stage, the layers, the loss for the last stage */
static pmlp_result pmlp__stage_forward(pmlp_trainer *t, pmlp__stage *stage, int microbatch) {
    const size_t from = pmlp__row_of(t, microbatch), rows = pmlp__row_of(t, microbatch + 1) - from;
    void *context = pmlp__context_of(t, stage);
    pmlp_result result = PMLP_OK;
    int l;
    if (rows == 0) return PMLP_OK;
    if (pmlp__reads_input(stage))
        result = t->backend->input(context, rows, pmlp__n_in(t->model, 0), t->data->x,
                                   t->index ? t->index + from : NULL, t->first + from,
                                   stage->x[0] + from * stage->row[0]);
    for (l = 0; result == PMLP_OK && l < stage->layers; l++)
        result = t->backend->forward(context, stage->handles[l], rows,
                                     stage->x[l] + from * stage->row[l],
                                     stage->x[l + 1] + from * stage->row[l + 1]);
    if (result == PMLP_OK && stage->is_last) result = pmlp__stage_loss(t, stage, from, rows);
    return result;
}

/* I: from dz of the stage's last layer down to dz of the layer below the stage */
static pmlp_result pmlp__stage_backward_input(pmlp_trainer *t, pmlp__stage *stage, int microbatch) {
    const size_t from = pmlp__row_of(t, microbatch), rows = pmlp__row_of(t, microbatch + 1) - from;
    pmlp_result result = PMLP_OK;
    int l;
    if (rows == 0) return PMLP_OK;
    for (l = stage->layers - 1; result == PMLP_OK && l >= (pmlp__reads_input(stage) ? 1 : 0); l--)
        result = t->backend->backward_input(pmlp__context_of(t, stage), stage->handles[l], rows,
                                            stage->dz[l + 1] + from * stage->row[l + 1],
                                            stage->x[l] + from * stage->row[l],
                                            stage->dz[l] + from * stage->row[l]);
    return result;
}

/* W of micro-batches begin .. end-1: one product with a longer k, and the same bits as several */
static pmlp_result pmlp__stage_backward_weight(pmlp_trainer *t, pmlp__stage *stage, int begin,
                                               int end) {
    const size_t from = pmlp__row_of(t, begin), rows = pmlp__row_of(t, end) - from;
    pmlp_result result = PMLP_OK;
    int l;
    if (rows == 0 && begin > 0) return PMLP_OK;
    for (l = stage->layers - 1; result == PMLP_OK && l >= 0; l--)
        result = t->backend->backward_weight(
            pmlp__context_of(t, stage), stage->handles[l], rows, stage->x[l] + from * stage->row[l],
            stage->dz[l + 1] + from * stage->row[l + 1], begin > 0);
    return result;
}

static pmlp_result pmlp__stage_squares(pmlp_trainer *t, pmlp__stage *stage) {
    void *context = pmlp__context_of(t, stage);
    pmlp_result result = PMLP_OK;
    int l;
    for (l = 0; result == PMLP_OK && l < stage->layers; l++)
        result = t->backend->gradient_squares(context, stage->handles[l],
                                              t->squares + t->squares_at[stage->first_layer + l] +
                                                  (l == 0 ? stage->first_column : 0));
    return result == PMLP_OK ? t->backend->synchronize(context) : result;
}

static bool pmlp__wants_norm(const pmlp_trainer *t) {
    return t->desc.gradient_norm || t->desc.clip_norm > 0.0f;
}

/* Summed per layer, then over the layers, whoever computed them. */
static double pmlp__gradient_norm(const pmlp_trainer *t) {
    double sum = 0.0;
    int l;
    for (l = 0; l < t->model->desc.layers; l++) {
        const double *squares = t->squares + t->squares_at[l];
        double layer = 0.0;
        size_t i;
        for (i = 0; i < pmlp__n_out(t->model, l); i++) layer += squares[i];
        sum += layer;
    }
    return sqrt(sum);
}

/* U: after the gate, so that every gradient of the step is there */
static pmlp_result pmlp__stage_update(pmlp_trainer *t, pmlp__stage *stage) {
    const pmlp_trainer_desc *d = &t->desc;
    pmlp_update_args args;
    pmlp_result result = PMLP_OK;
    int l;
    args.optimizer = d->optimizer;
    args.learning_rate = d->learning_rate;
    args.momentum = d->momentum;
    args.beta1 = d->beta1;
    args.beta2 = d->beta2;
    args.epsilon = d->epsilon;
    args.weight_decay = d->weight_decay;
    args.step = t->step + 1;
    args.gradient_scale = 1.0f;
    if (d->clip_norm > 0.0f) {
        const double norm = t->gradient_norm;
        if (norm > (double)d->clip_norm) args.gradient_scale = (float)((double)d->clip_norm / norm);
    }
    for (l = 0; result == PMLP_OK && l < stage->layers; l++)
        result = t->backend->update(pmlp__context_of(t, stage), stage->handles[l], &args);
    return result;
}

/*============================================================================================*/
/* >>worker: one short loop                                                                   */
/*============================================================================================*/

/* Sleeping without missing the call to wake up: the sleeper sets `sleeping`, then looks once more
   whether what it waits for has come, and only then sleeps; the other side first makes it come,
   then looks at `sleeping`. All four are sequentially consistent, so one of the two sees the other.
   The waker that takes the flag back signals under the mutex, which the sleeper holds from its last
   look at the flag until it sleeps. */
/* Lets a worker that sleeps look again. May be called from any thread. */
static void pmlp__wake(void *worker) {
    pmlp__worker *w = (pmlp__worker *)worker;
    if (!pmlp__load(&w->sleeping) || !pmlp__exchange(&w->sleeping, 0)) return;
    pmlp__mutex_lock(&w->mutex);
    pmlp__cond_signal(&w->cond);
    pmlp__mutex_unlock(&w->mutex);
}

static void pmlp__wake_all(pmlp_trainer *t) {
    int i;
    for (i = 0; i < t->schedule->workers; i++) pmlp__wake(&t->workers[i]);
}

/* The first failure wins; the others only stop. */
static void pmlp__worker_fail(pmlp__worker *w, pmlp_action a, pmlp_result result) {
    pmlp_trainer *t = w->trainer;
    if (pmlp__exchange(&t->failed, 1) == 0) {
        pmlp__fail(&t->failure, result, "worker %d failed in %s: %s", w->index,
                   pmlp__action_label(a).text, pmlp_result_text(result));
        pmlp__error_place(&t->failure, w->index, a);
    }
    pmlp__wake_all(t);
}

static void pmlp__blocked(pmlp__worker *w) {
    if (w->blocked_since == 0.0) w->blocked_since = pmlp__clock();
}

static void pmlp__unblocked(pmlp__worker *w) {
    if (w->blocked_since == 0.0) return;
    w->blocked += pmlp__clock() - w->blocked_since;
    w->blocked_since = 0.0;
}

/* A stage whose last W is done: the last one computes the norm of the whole gradient and opens the
   gate to the updates. Until then nothing is lost if something fails. */
static pmlp_result pmlp__gradients_done(pmlp_trainer *t, pmlp__stage *stage) {
    if (pmlp__wants_norm(t)) {
        const pmlp_result result = pmlp__stage_squares(t, stage);
        if (result != PMLP_OK) return result;
    }
    if (pmlp__add(&t->gathered, 1) + 1 < t->schedule->stages) return PMLP_OK;
    if (pmlp__wants_norm(t)) t->gradient_norm = pmlp__gradient_norm(t);
    pmlp__store(&t->gate, 1);
    pmlp__wake_all(t);
    return PMLP_OK;
}

/* Does the W of one stage that was put off. */
static pmlp_result pmlp__flush_stage(pmlp__worker *w, pmlp__stage *stage) {
    pmlp_trainer *t = w->trainer;
    pmlp_result result;
    if (stage->w_begin == stage->w_end) return PMLP_OK;
    pmlp__unblocked(w);
    result = pmlp__stage_backward_weight(t, stage, stage->w_begin, stage->w_end);
    stage->w_begin = stage->w_end;
    w->w_pending--;
    if (result == PMLP_OK && stage->w_end == t->schedule->microbatches)
        result = pmlp__gradients_done(t, stage);
    if (result != PMLP_OK) {
        const pmlp_action a = {PMLP_OP_W, stage->index, stage->w_end - 1};
        pmlp__worker_fail(w, a, result);
    }
    return result;
}

/* Does the W of all stages of the worker. */
static pmlp_result pmlp__flush_weights(pmlp__worker *w) {
    pmlp_trainer *t = w->trainer;
    pmlp_result result = PMLP_OK;
    int i;
    for (i = 0; result == PMLP_OK && w->w_pending > 0 && i < t->schedule->stages; i++)
        if (t->stages[i].worker == w->index) result = pmlp__flush_stage(w, &t->stages[i]);
    return result;
}

/* W of neighbouring micro-batches is merged: put off until enough rows are together. That they come
   in ascending order, one behind the other, is a rule of the checker. */
static pmlp_result pmlp__put_off_weights(pmlp__worker *w, pmlp__stage *stage, int microbatch) {
    const pmlp_trainer *t = w->trainer;
    if (stage->w_begin == stage->w_end) {
        stage->w_begin = microbatch;
        w->w_pending++;
    }
    stage->w_end = microbatch + 1;
    return pmlp__row_of(t, stage->w_end) - pmlp__row_of(t, stage->w_begin) < t->desc.w_rows
               ? PMLP_OK
               : pmlp__flush_stage(w, stage);
}

static pmlp_result pmlp__send(pmlp_trainer *t, pmlp__stage *stage, bool forward, int microbatch) {
    const int l = forward ? stage->layers : stage->below;
    const size_t from = pmlp__row_of(t, microbatch), rows = pmlp__row_of(t, microbatch + 1) - from;
    const float *data = (forward ? stage->x : stage->dz)[l] + from * stage->row[l];
    return t->edges->send(forward ? stage->send_f : stage->send_b, microbatch, data,
                          rows * stage->row[l] * sizeof *data);
}

static pmlp_result pmlp__receive(pmlp_trainer *t, pmlp__stage *stage, bool forward,
                                 int microbatch) {
    const int l = forward ? stage->below : stage->layers;
    const size_t from = pmlp__row_of(t, microbatch), rows = pmlp__row_of(t, microbatch + 1) - from;
    float *data = (forward ? stage->x : stage->dz)[l] + from * stage->row[l];
    return t->edges->receive(forward ? stage->recv_f : stage->recv_b, microbatch, data,
                             rows * stage->row[l] * sizeof *data);
}

/* One action. PMLP_BUSY: not yet. */
static pmlp_result pmlp__execute(pmlp__worker *w, pmlp_action a) {
    pmlp_trainer *t = w->trainer;
    pmlp__stage *stage = &t->stages[a.stage];
    switch (a.op) {
    case PMLP_OP_F: return pmlp__stage_forward(t, stage, a.microbatch);
    case PMLP_OP_I: return pmlp__stage_backward_input(t, stage, a.microbatch);
    case PMLP_OP_W: return pmlp__put_off_weights(w, stage, a.microbatch);
    case PMLP_OP_SEND_F: return pmlp__send(t, stage, true, a.microbatch);
    case PMLP_OP_RECV_F: return pmlp__receive(t, stage, true, a.microbatch);
    case PMLP_OP_SEND_B: return pmlp__send(t, stage, false, a.microbatch);
    case PMLP_OP_RECV_B: return pmlp__receive(t, stage, false, a.microbatch);
    case PMLP_OP_U:
        if (!pmlp__load(&t->gate)) return PMLP_BUSY;
        pmlp__unblocked(w);
        pmlp__store(&t->updating, 1);
        return pmlp__stage_update(t, stage);
    default: return PMLP_ERROR_SCHEDULE;
    }
}

/* Runs the list until its end (PMLP_OK), until something is not there yet (PMLP_BUSY), or until
   something fails. W that was put off is done before the updates and while there is nothing
   else. */
static pmlp_result pmlp__advance(pmlp__worker *w) {
    for (; w->next < w->count; w->next++) {
        const pmlp_action a = w->list[w->next];
        pmlp_result result = PMLP_OK;
        if (pmlp__load(&w->trainer->failed)) return PMLP_ERROR_STATE;
        if (a.op == PMLP_OP_U) result = pmlp__flush_weights(w);
        if (result == PMLP_OK) result = pmlp__execute(w, a);
        if (result == PMLP_BUSY && w->w_pending > 0) {
            result = pmlp__flush_weights(w);
            if (result == PMLP_OK) result = pmlp__execute(w, a);
        }
        if (result == PMLP_BUSY) {
            pmlp__blocked(w);
            return result;
        }
        if (result != PMLP_OK) {
            pmlp__worker_fail(w, a, result);
            return result;
        }
        pmlp__unblocked(w);
    }
    return PMLP_OK;
}

/* Waits a little: first spins, then sleeps until woken, or for a millisecond if `timed`. The caller
   asks again after each call, and once between falling asleep and sleeping: see pmlp__wake(). */
static void pmlp__backoff(pmlp__worker *w, int *spins, bool timed) {
    if (*spins < w->trainer->spins) {
        ++*spins;
        pmlp__pause();
        return;
    }
    if (!pmlp__exchange(&w->sleeping, 1)) return;
    pmlp__mutex_lock(&w->mutex);
    if (pmlp__load(&w->sleeping)) {
        if (timed) pmlp__cond_wait_1ms(&w->cond, &w->mutex);
        else pmlp__cond_wait(&w->cond, &w->mutex);
    }
    pmlp__mutex_unlock(&w->mutex);
    pmlp__store(&w->sleeping, 0);
}

static void pmlp__worker_begin(pmlp__worker *w, const pmlp_schedule *lowered) {
    w->list = pmlp_schedule_actions(lowered, w->index, &w->count);
    w->next = 0;
    w->w_pending = 0;
    w->blocked = w->blocked_since = 0.0;
    w->begun = w->finished = pmlp__clock();
}

/* End of a list, good or bad: waits for the device, which may still read the batch. */
static void pmlp__worker_finish(pmlp__worker *w, pmlp_result result) {
    pmlp_trainer *t = w->trainer;
    const pmlp_result synchronized = t->backend->synchronize(w->context);
    if (result == PMLP_OK && synchronized != PMLP_OK) {
        if (pmlp__exchange(&t->failed, 1) == 0) {
            const pmlp_action last = w->list[w->count - 1];
            pmlp__fail(&t->failure, synchronized,
                       "worker %d failed in what it had begun up to %s: %s", w->index,
                       pmlp__label_of(last.op, last.stage, last.microbatch).text,
                       pmlp_result_text(synchronized));
            pmlp__error_place(&t->failure, w->index, last);
        }
        pmlp__wake_all(t);
    }
    w->finished = pmlp__clock();
    pmlp__unblocked(w);
}

/* One pass of one worker on a thread of its own. */
static void pmlp__worker_pass(pmlp__worker *w) {
    pmlp_result result;
    int spins = 0, at = -1;
    w->begun = pmlp__clock();
    while ((result = pmlp__advance(w)) == PMLP_BUSY) {
        if (w->next != at) { /* some progress: spin anew */
            at = w->next;
            spins = 0;
            pmlp__store(&w->sleeping, 0);
        }
        pmlp__backoff(w, &spins, w->trainer->polled);
    }
    pmlp__store(&w->sleeping, 0);
    pmlp__worker_finish(w, result);
}

/* The thread of workers 1 .. p-1. */
static void pmlp__worker_main(void *argument) {
    pmlp__worker *w = (pmlp__worker *)argument;
    pmlp_trainer *t = w->trainer;
    int pass = 0, spins = 0;
    for (;;) {
        if (pmlp__load(&t->stop)) return;
        if (pmlp__load(&t->pass) == pass) {
            pmlp__backoff(w, &spins, false);
            continue;
        }
        pmlp__store(&w->sleeping, 0);
        pass = pmlp__load(&t->pass);
        pmlp__worker_pass(w);
        pmlp__add(&t->done, 1);
        pmlp__wake(&t->workers[0]);
        spins = 0;
    }
}

/*============================================================================================*/
/* >>trainer                                                                                  */
/*============================================================================================*/

/* --- creating --------------------------------------------------------------------------------- */

/* The one place that knows the defaults; pmlp_trainer_query_desc() shows what they became. */
static pmlp_trainer_desc pmlp__trainer_defaults(const pmlp_trainer_desc *desc) {
    pmlp_trainer_desc d = *desc;
    if (d.custom) {
        d.workers = d.custom->workers;
        d.microbatches = d.custom->microbatches;
        d.schedule = PMLP_SCHEDULE_DEFAULT;
    } else {
        if (!d.workers) d.workers = 1;
        if (!d.microbatches) d.microbatches = d.workers == 1 ? 1 : 4;
        if (!d.schedule) d.schedule = PMLP_SCHEDULE_1F1B;
    }
    if (!d.batch) d.batch = 128;
    if (!d.slots) d.slots = d.microbatches;
    if (!d.w_rows) d.w_rows = 128;
    if (!d.optimizer) d.optimizer = PMLP_SGD;
    if (d.learning_rate == 0.0f)
        d.learning_rate = d.optimizer == PMLP_SGD             ? 0.1f
                          : pmlp__moments(d.optimizer) == 1 ? 0.05f
                                                              : 0.001f;
    if (d.momentum == 0.0f) d.momentum = 0.9f;
    if (d.beta1 == 0.0f) d.beta1 = 0.9f;
    if (d.beta2 == 0.0f) d.beta2 = 0.999f;
    if (d.epsilon == 0.0f) d.epsilon = 1e-8f;
    if (!d.backend) d.backend = pmlp_cpu_backend();
    if (!d.edges) d.edges = d.backend->edges ? d.backend->edges : pmlp_thread_edges();
    return d;
}

static pmlp_schedule *pmlp__schedule_copy(const pmlp_schedule *s, const pmlp_allocator *allocator) {
    pmlp_schedule *out = pmlp__schedule_new(allocator, s->workers, s->stages, s->microbatches);
    int worker;
    size_t i;
    if (!out) return NULL;
    memcpy(out->stage_worker, s->stage_worker, (size_t)s->stages * sizeof *s->stage_worker);
    for (worker = 0; worker < s->workers; worker++)
        for (i = s->first[worker]; i < s->first[worker + 1]; i++)
            if (!pmlp__emit(out, worker, s->actions[i].op, s->actions[i].stage,
                            s->actions[i].microbatch)) {
                pmlp_schedule_destroy(out);
                return NULL;
            }
    return out;
}

/* The lists for training and for evaluation, both proved to finish with the slots that there
   are. */
static pmlp_result pmlp__trainer_schedules(pmlp_trainer *t, pmlp_error *error) {
    const pmlp_trainer_desc *d = &t->desc;
    pmlp_schedule_desc s;
    pmlp_result result = PMLP_OK;
    int *slots, edge;
    if (d->custom) {
        t->schedule = pmlp__schedule_copy(d->custom, &d->allocator);
        if (!t->schedule) return pmlp__no_memory(error, "a schedule");
        t->desc.custom = t->schedule;
    } else {
        s.kind = d->schedule;
        s.workers = d->workers;
        s.microbatches = d->microbatches;
        s.allocator = d->allocator;
        result = pmlp_schedule_create(&s, &t->schedule, error);
    }
    if (result == PMLP_OK) result = pmlp_schedule_check(t->schedule, d->slots, NULL, error);
    if (result == PMLP_OK) result = pmlp_schedule_lower(t->schedule, &t->lowered, error);
    if (result != PMLP_OK) return result;
    t->forward = pmlp__schedule_forward(t->schedule);
    slots = (int *)pmlp__new(&d->allocator, 2 * (size_t)t->schedule->stages, sizeof *slots);
    if (t->forward && slots) {
        for (edge = 0; edge < 2 * t->schedule->stages; edge++) slots[edge] = d->slots;
        result = pmlp__replay_run(t->forward, slots, false, error);
    } else {
        result = pmlp__no_memory(error, "a schedule");
    }
    pmlp__delete(&d->allocator, slots);
    return result;
}

static pmlp_result pmlp__trainer_cuts(pmlp_trainer *t, pmlp_error *error) {
    const int stages = t->schedule->stages;
    const pmlp_cut *wanted = t->desc.cuts;
    t->cuts = (pmlp_cut *)pmlp__new(&t->desc.allocator, (size_t)stages, sizeof *t->cuts);
    t->desc.cuts = t->cuts;
    if (!t->cuts) return pmlp__no_memory(error, "the cuts");
    if (!wanted)
        return pmlp_partition(t->model, stages, t->desc.whole_layers, t->cuts, NULL, error);
    memcpy(t->cuts, wanted, (size_t)(stages - 1) * sizeof *t->cuts);
    return PMLP_OK;
}

/* Arrays that belong to the trainer as a whole. */
static pmlp_result pmlp__trainer_arrays(pmlp_trainer *t, pmlp_error *error) {
    const pmlp_allocator *allocator = &t->desc.allocator;
    const size_t workers = (size_t)t->schedule->workers, stages = (size_t)t->schedule->stages;
    size_t neurons = 0;
    int l;
    t->workers = (pmlp__worker *)pmlp__new(allocator, workers, sizeof *t->workers);
    t->stages = (pmlp__stage *)pmlp__new(allocator, stages, sizeof *t->stages);
    t->connected = (void **)pmlp__new(allocator, 2 * stages, sizeof *t->connected);
    t->row_loss = (double *)pmlp__new(allocator, t->desc.batch, sizeof *t->row_loss);
    t->row_hit = (unsigned char *)pmlp__new(allocator, t->desc.batch, 1);
    t->idle = (double *)pmlp__new(allocator, workers, sizeof *t->idle);
    t->squares_at =
        (size_t *)pmlp__new(allocator, (size_t)t->model->desc.layers, sizeof *t->squares_at);
    for (l = 0; t->squares_at && l < t->model->desc.layers; l++) {
        t->squares_at[l] = neurons;
        neurons += pmlp__n_out(t->model, l);
    }
    t->squares = (double *)pmlp__new(allocator, neurons, sizeof *t->squares);
    if (t->workers && t->stages && t->connected && t->row_loss && t->row_hit && t->idle &&
        t->squares_at && t->squares)
        return PMLP_OK;
    return pmlp__no_memory(error, "a trainer");
}

static pmlp_result pmlp__worker_open(pmlp_trainer *t, int index, pmlp_error *error) {
    pmlp__worker *w = &t->workers[index];
    pmlp_backend_desc open;
    pmlp_result result;
    w->trainer = t;
    w->index = index;
    w->has_mutex = pmlp__mutex_init(&w->mutex);
    w->has_cond = pmlp__cond_init(&w->cond);
    if (!w->has_mutex || !w->has_cond)
        return pmlp__fail(error, PMLP_ERROR_THREAD, "worker %d: no mutex could be made", index);
    open.worker = index;
    open.workers = t->schedule->workers;
    open.allocator = t->desc.allocator;
    result = t->backend->open(t->backend, &open, &w->context, error);
    if (result != PMLP_OK && error->text[0] == '\0')
        pmlp__fail(error, result, "worker %d could not open the back end '%s'", index,
                   t->backend->name);
    return result;
}

static pmlp_result pmlp__stage_buffer(pmlp_trainer *t, pmlp__stage *stage, int l, float **buffer,
                                      bool *owned) {
    void *memory = NULL;
    pmlp_result result;
    if (pmlp__mul_overflows(t->desc.batch, stage->row[l] * sizeof(float))) return PMLP_ERROR_MEMORY;
    result = t->backend->alloc(pmlp__context_of(t, stage),
                               t->desc.batch * stage->row[l] * sizeof(float), &memory);
    *buffer = (float *)memory;
    *owned = result == PMLP_OK;
    return result;
}

/* Which layers a stage has, and which columns of layer 0. */
static void pmlp__stage_extent(pmlp_trainer *t, int index) {
    const pmlp_cut top = {t->model->desc.layers, 0}, bottom = {0, 0};
    const pmlp_cut begin = index > 0 ? t->cuts[index - 1] : bottom;
    const pmlp_cut end = index < t->schedule->stages - 1 ? t->cuts[index] : top;
    const bool cut_inside = end.layer == 0;
    pmlp__stage *s = &t->stages[index];
    s->index = index;
    s->worker = t->schedule->stage_worker[index];
    s->is_last = index == t->schedule->stages - 1;
    s->first_layer = begin.layer;
    s->layers = cut_inside ? 1 : end.layer - begin.layer;
    s->first_column = (size_t)begin.column;
    s->columns =
        (cut_inside ? (size_t)end.column : pmlp__n_out(t->model, begin.layer)) - s->first_column;
    s->below = begin.column > 0;
}

/* The layers of a stage with their weights. */
static pmlp_result pmlp__stage_weights(pmlp_trainer *t, pmlp__stage *s) {
    void *context = pmlp__context_of(t, s);
    pmlp_result result = PMLP_OK;
    int l;
    for (l = 0; result == PMLP_OK && l < s->layers; l++) {
        const int at = s->first_layer + l;
        pmlp_layer_desc d = pmlp__layer_desc(t->model, at, t->desc.optimizer);
        if (l == 0) {
            d.first_out = s->first_column;
            d.n_out = s->columns;
        }
        result = t->backend->layer_create(context, &d, &s->handles[l]);
        if (result == PMLP_OK)
            result = t->backend->write(context, s->handles[l], PMLP_TENSOR_PARAMS,
                                       t->model->w[at] + d.first_out * d.n_in,
                                       t->model->b[at] + d.first_out);
    }
    return result;
}

/* The tables of a stage and the layers in it; buffers come later, since neighbours share some. */
static pmlp_result pmlp__stage_layers(pmlp_trainer *t, int index) {
    const pmlp_allocator *allocator = &t->desc.allocator;
    pmlp__stage *s = &t->stages[index];
    size_t n;
    int l;
    pmlp__stage_extent(t, index);
    n = (size_t)s->layers;
    s->handles = (void **)pmlp__new(allocator, n, sizeof *s->handles);
    s->x = (float **)pmlp__new(allocator, n + 1, sizeof *s->x);
    s->dz = (float **)pmlp__new(allocator, n + 1, sizeof *s->dz);
    s->owns_x = (bool *)pmlp__new(allocator, n + 1, sizeof *s->owns_x);
    s->owns_dz = (bool *)pmlp__new(allocator, n + 1, sizeof *s->owns_dz);
    s->row = (size_t *)pmlp__new(allocator, n + 1, sizeof *s->row);
    if (!s->handles || !s->x || !s->dz || !s->owns_x || !s->owns_dz || !s->row)
        return PMLP_ERROR_MEMORY;
    for (l = 0; l <= s->layers; l++) {
        const int at = s->first_layer + l;
        s->row[l] = t->backend->row_floats(pmlp__context_of(t, s), (size_t)t->model->sizes[at],
                                           at ? t->model->activations[at - 1] : PMLP_LINEAR);
    }
    return pmlp__stage_weights(t, s);
}

/* A batch's x and dz. The boundary to the stage above is one buffer for both if memory is
   shared. */
static pmlp_result pmlp__stage_buffers(pmlp_trainer *t, int index) {
    pmlp__stage *s = &t->stages[index];
    pmlp__stage *above = s->is_last ? NULL : &t->stages[index + 1];
    const int n = s->layers;
    const bool shared = above && (t->edges->shared || above->worker == s->worker);
    pmlp_result result = PMLP_OK;
    int l;
    for (l = 0; result == PMLP_OK && l <= n; l++)
        if (!s->x[l]) result = pmlp__stage_buffer(t, s, l, &s->x[l], &s->owns_x[l]);
    for (l = pmlp__reads_input(s) ? 1 : 0; result == PMLP_OK && l <= n; l++)
        if (!s->dz[l]) result = pmlp__stage_buffer(t, s, l, &s->dz[l], &s->owns_dz[l]);
    if (result == PMLP_OK && shared) {
        above->x[above->below] = s->x[n];
        above->dz[above->below] = s->dz[n];
    }
    return result;
}

/* One queue per boundary and direction. Activations and gradients of different stages in one queue
   would be mixed up as soon as a worker has two stages. */
static pmlp_result pmlp__connect_edge(pmlp_trainer *t, int from, int to, void **edge,
                                      pmlp_error *error) {
    const pmlp__stage *upper = &t->stages[from > to ? from : to];
    pmlp_edge_desc d;
    pmlp_result result;
    d.from_stage = from;
    d.to_stage = to;
    d.from_worker = t->stages[from].worker;
    d.to_worker = t->stages[to].worker;
    d.gradient = to < from;
    d.slots = t->desc.slots;
    d.row_bytes = upper->row[upper->below] * sizeof(float);
    d.max_rows = (t->desc.batch + (size_t)t->desc.microbatches - 1) / (size_t)t->desc.microbatches;
    d.from_context = t->workers[d.from_worker].context;
    d.to_context = t->workers[d.to_worker].context;
    d.wake = pmlp__wake;
    d.from_wake = &t->workers[d.from_worker];
    d.to_wake = &t->workers[d.to_worker];
    d.allocator = t->desc.allocator;
    result = t->edges->connect(t->edges, &d, edge, error);
    if (result == PMLP_OK) t->connected[t->connected_count++] = *edge;
    else if (error->text[0] == '\0')
        pmlp__fail(error, result, "the edge from stage %d to stage %d could not be connected", from,
                   to);
    return result;
}

static pmlp_result pmlp__trainer_stages(pmlp_trainer *t, pmlp_error *error) {
    const int stages = t->schedule->stages;
    pmlp_result result = PMLP_OK;
    int i;
    for (i = 0; result == PMLP_OK && i < stages; i++) {
        result = pmlp__stage_layers(t, i);
        if (result != PMLP_OK)
            pmlp__fail(error, result, "the layers of stage %d: %s", i, pmlp_result_text(result));
    }
    for (i = 0; result == PMLP_OK && i < stages; i++) {
        result = pmlp__stage_buffers(t, i);
        if (result != PMLP_OK)
            pmlp__fail(error, result, "the batch of stage %d: %s", i, pmlp_result_text(result));
    }
    for (i = 0; result == PMLP_OK && i + 1 < stages; i++) {
        pmlp__stage *s = &t->stages[i], *above = &t->stages[i + 1];
        if (s->worker == above->worker) continue;
        result = pmlp__connect_edge(t, i, i + 1, &s->send_f, error);
        above->recv_f = s->send_f;
        if (result == PMLP_OK) result = pmlp__connect_edge(t, i + 1, i, &above->send_b, error);
        s->recv_b = above->send_b;
    }
    return result;
}

static pmlp_result pmlp__trainer_threads(pmlp_trainer *t, pmlp_error *error) {
    int i;
    /* With a core for each worker a short spin is cheaper than a sleep; without, it takes the core
       from the very worker that is waited for. */
    t->spins = t->schedule->workers <= pmlp__cores() ? 20000 : 20;
    t->polled = t->edges != pmlp_thread_edges();
    for (i = 1; !t->desc.no_threads && i < t->schedule->workers; i++) {
        pmlp__worker *w = &t->workers[i];
        w->start.run = pmlp__worker_main;
        w->start.argument = w;
        w->has_thread = pmlp__thread_create(&w->thread, &w->start);
        if (!w->has_thread)
            return pmlp__fail(error, PMLP_ERROR_THREAD,
                              "the thread of worker %d could not be started", i);
    }
    return PMLP_OK;
}

static pmlp_result pmlp__trainer_build(pmlp_trainer *t, pmlp_error *error) {
    pmlp_result result = pmlp__trainer_schedules(t, error);
    int i;
    if (result == PMLP_OK) result = pmlp__trainer_cuts(t, error);
    if (result == PMLP_OK) result = pmlp__trainer_arrays(t, error);
    for (i = 0; result == PMLP_OK && i < t->schedule->workers; i++)
        result = pmlp__worker_open(t, i, error);
    if (result == PMLP_OK) result = pmlp__trainer_stages(t, error);
    return result == PMLP_OK ? pmlp__trainer_threads(t, error) : result;
}

PMLP_API pmlp_result pmlp_trainer_create(pmlp_model *model, const pmlp_trainer_desc *desc,
                                         pmlp_trainer **trainer, pmlp_error *error) {
    pmlp_error why; /* complete on failure, and not the caller's on success */
    pmlp_trainer *t;
    pmlp_result result;
    if (!trainer) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "trainer: is NULL");
    *trainer = NULL;
    if (!model) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "model: is NULL");
    if (!desc) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "desc: is NULL");
    result = pmlp__validate_trainer(model, desc, error);
    if (result != PMLP_OK) return result;
    t = (pmlp_trainer *)pmlp__new(&desc->allocator, 1, sizeof *t);
    if (!t) return pmlp__no_memory(error, "a trainer");
    t->desc = pmlp__trainer_defaults(desc);
    t->backend = t->desc.backend;
    t->edges = t->desc.edges;
    t->model = model;
    pmlp__store(&t->no_query, 1);
    pmlp__error_clear(&t->error);
    pmlp__error_clear(&t->failure);
    pmlp__error_clear(&why);
    result = pmlp__trainer_build(t, &why);
    if (result != PMLP_OK) {
        pmlp__log(&desc->logger, PMLP_LOG_ERROR, "%s", why.text);
        pmlp_trainer_destroy(t);
        if (error) *error = why;
        return result;
    }
    model->trainer = *trainer = t;
    pmlp__log(&desc->logger, PMLP_LOG_INFO,
              "trainer: %d workers, %d stages, %d micro-batches, %s, %s", t->schedule->workers,
              t->schedule->stages, t->schedule->microbatches,
              desc->custom ? "schedule of the caller" : pmlp_schedule_kind_name(t->desc.schedule),
              t->backend->name);
    return PMLP_OK;
}

/* --- destroying ------------------------------------------------------------------------------- */

static void pmlp__stage_destroy(pmlp_trainer *t, pmlp__stage *s) {
    const pmlp_allocator *allocator = &t->desc.allocator;
    void *context = pmlp__context_of(t, s);
    int l;
    for (l = 0; s->handles && l < s->layers; l++)
        if (s->handles[l]) t->backend->layer_destroy(context, s->handles[l]);
    for (l = 0; s->row && s->owns_x && s->owns_dz && l <= s->layers; l++) {
        if (s->owns_x[l]) t->backend->free(context, s->x[l]);
        if (s->owns_dz[l]) t->backend->free(context, s->dz[l]);
    }
    pmlp__delete(allocator, s->handles);
    pmlp__delete(allocator, s->x);
    pmlp__delete(allocator, s->dz);
    pmlp__delete(allocator, s->owns_x);
    pmlp__delete(allocator, s->owns_dz);
    pmlp__delete(allocator, s->row);
}

static void pmlp__worker_close(pmlp_trainer *t, pmlp__worker *w) {
    if (w->context) t->backend->close(w->context);
    if (w->has_mutex) pmlp__mutex_done(&w->mutex);
    if (w->has_cond) pmlp__cond_done(&w->cond);
}

/* One of a layer's tensors from all stages that have some of it, into w [n_out][n_in] and b
   [n_out]; either may be NULL. */
static pmlp_result pmlp__read_layer(pmlp_trainer *t, int layer, pmlp_tensor tensor, float *w,
                                    float *b) {
    pmlp_result result = PMLP_OK;
    int i;
    for (i = 0; result == PMLP_OK && i < t->schedule->stages; i++) {
        pmlp__stage *s = &t->stages[i];
        const int l = layer - s->first_layer;
        const size_t first = l == 0 ? s->first_column : 0;
        if (l < 0 || l >= s->layers) continue;
        result = t->backend->read(pmlp__context_of(t, s), s->handles[l], tensor,
                                  w ? w + first * pmlp__n_in(t->model, layer) : NULL,
                                  b ? b + first : NULL);
    }
    return result;
}

static pmlp_result pmlp__read_weights(pmlp_trainer *t) {
    pmlp_result result = PMLP_OK;
    int l;
    for (l = 0; result == PMLP_OK && l < t->model->desc.layers; l++)
        result = pmlp__read_layer(t, l, PMLP_TENSOR_PARAMS, t->model->w[l], t->model->b[l]);
    return result;
}

/* A failure amid the updates: some weights are those of the last step, some of the one before. */
static bool pmlp__is_mixed(pmlp_trainer *t) {
    return pmlp__load(&t->failed) && pmlp__load(&t->updating);
}

PMLP_API void pmlp_trainer_destroy(pmlp_trainer *t) {
    pmlp_allocator allocator;
    int i;
    if (!t) return;
    allocator = t->desc.allocator;
    pmlp__store(&t->stop, 1);
    for (i = 0; t->workers && i < t->schedule->workers; i++)
        if (t->workers[i].has_thread) pmlp__wake(&t->workers[i]);
    for (i = 0; t->workers && i < t->schedule->workers; i++)
        if (t->workers[i].has_thread) pmlp__thread_join(t->workers[i].thread);
    if (t->model->trainer == t) {
        if (t->model->stale && !pmlp__is_mixed(t) && pmlp__read_weights(t) == PMLP_OK)
            t->model->stale = false;
        if (t->model->stale)
            pmlp__log(&t->desc.logger, PMLP_LOG_ERROR, "the weights could not be read back");
        t->model->trainer = NULL;
    }
    for (i = 0; i < t->connected_count; i++) t->edges->disconnect(t->connected[i]);
    for (i = 0; t->stages && t->workers && i < t->schedule->stages; i++)
        pmlp__stage_destroy(t, &t->stages[i]);
    for (i = 0; t->workers && i < t->schedule->workers; i++) pmlp__worker_close(t, &t->workers[i]);
    pmlp_schedule_destroy(t->schedule);
    pmlp_schedule_destroy(t->lowered);
    pmlp_schedule_destroy(t->forward);
    pmlp__delete(&allocator, t->cuts);
    pmlp__delete(&allocator, t->stages);
    pmlp__delete(&allocator, t->workers);
    pmlp__delete(&allocator, t->connected);
    pmlp__delete(&allocator, t->row_loss);
    pmlp__delete(&allocator, t->row_hit);
    pmlp__delete(&allocator, t->squares);
    pmlp__delete(&allocator, t->squares_at);
    pmlp__delete(&allocator, t->idle);
    pmlp__delete(&allocator, t->order);
    pmlp__delete(&allocator, t);
}

/* --- one pass of all workers over a batch ----------------------------------------------------- */

/* With threads or without, the same lists are run by the same loop; what differs is only who comes
   next. */
/* Each worker in turn until it has to wait. By the checker's proof somebody can always go on. */
static void pmlp__pass_without_threads(pmlp_trainer *t) {
    const int workers = t->schedule->workers;
    int i, left = workers, still = 0;
    for (i = 0; left > 0; i = (i + 1) % workers) {
        pmlp__worker *w = &t->workers[i];
        const int before = w->next;
        const double begin = pmlp__clock();
        pmlp_result result;
        if (w->list == NULL) continue;
        result = pmlp__advance(w);
        w->blocked = w->blocked_since = 0.0;
        w->busy += pmlp__clock() - begin;
        if (result != PMLP_BUSY) {
            pmlp__worker_finish(w, result);
            w->list = NULL;
            left--;
        }
        still = result == PMLP_BUSY && w->next == before ? still + 1 : 0;
        if (still <= workers) continue;
        if (t->polled) pmlp__yield();
        else pmlp__worker_fail(w, w->list[w->next], PMLP_ERROR_DEADLOCK);
    }
}

static void pmlp__pass_with_threads(pmlp_trainer *t) {
    const int others = t->schedule->workers - 1;
    int i, spins = 0;
    pmlp__add(&t->pass, 1);
    for (i = 1; i <= others; i++) pmlp__wake(&t->workers[i]);
    pmlp__worker_pass(&t->workers[0]);
    while (pmlp__load(&t->done) < others) pmlp__backoff(&t->workers[0], &spins, false);
    pmlp__store(&t->workers[0].sleeping, 0);
    for (i = 0; i <= others; i++) {
        const pmlp__worker *w = &t->workers[i];
        t->workers[i].busy += w->finished - w->begun - w->blocked;
    }
}

/* Rows first .. first + rows - 1 of data (through index, if there is one), trained on or
   evaluated. */
static pmlp_result pmlp__pass(pmlp_trainer *t, const pmlp_data *data, const uint32_t *index,
                              size_t first, size_t rows, bool training) {
    const pmlp_schedule *lists = training ? t->lowered : t->forward;
    pmlp_result result = PMLP_OK;
    int i;
    t->data = data;
    t->index = index ? index + first : NULL;
    t->first = first;
    t->rows = rows;
    t->training = training;
    pmlp__store(&t->done, 0);
    pmlp__store(&t->gathered, 0);
    pmlp__store(&t->gate, 0);
    pmlp__store(&t->updating, 0);
    for (i = 0; i < t->schedule->workers; i++) pmlp__worker_begin(&t->workers[i], lists);
    for (i = 0; i < t->schedule->stages; i++) t->stages[i].w_begin = t->stages[i].w_end = 0;
    for (i = 0; result == PMLP_OK && i < t->connected_count; i++)
        result = t->edges->reset(t->connected[i]);
    if (result != PMLP_OK) {
        pmlp__store(&t->failed, 1);
        pmlp__fail(&t->failure, result, "an edge could not be reset: %s", pmlp_result_text(result));
    } else if (t->desc.no_threads) {
        pmlp__pass_without_threads(t);
    } else {
        pmlp__pass_with_threads(t);
    }
    if (!pmlp__load(&t->failed)) return PMLP_OK;
    t->error = t->failure;
    pmlp__log(&t->desc.logger, PMLP_LOG_ERROR, "%s", t->error.text);
    return t->failure.result;
}

/* --- calls ------------------------------------------------------------------------------------ */

/* A call that computes: one at a time, and not after a failure inside the pipeline. */
static pmlp_result pmlp__enter(pmlp_trainer *t) {
    if (!t) return PMLP_ERROR_ARGUMENT;
    if (pmlp__exchange(&t->in_use, 1)) return PMLP_ERROR_STATE;
    if (!pmlp__load(&t->failed)) return PMLP_OK;
    pmlp__fail(&t->error, PMLP_ERROR_STATE,
               "the trainer has failed before and does no more: %.200s", t->failure.text);
    pmlp__store(&t->in_use, 0);
    return PMLP_ERROR_STATE;
}

static pmlp_result pmlp__leave(pmlp_trainer *t, pmlp_result result) {
    pmlp__store(&t->in_use, 0);
    return result;
}

/* What a call tells about itself is added up on the calling thread, from what the last stage left
   behind for each row: in the order of the rows, so that the loss does not depend on the pipeline
   either. */
/* Sums that grow over the passes of one call. */
typedef struct pmlp__tally {
    double loss, begun;
    size_t rows, total_rows, hits, steps;
    bool has_labels;
} pmlp__tally;

static pmlp__tally pmlp__tally_begin(pmlp_trainer *t, const pmlp_data *data) {
    pmlp__tally tally;
    int i;
    memset(&tally, 0, sizeof tally);
    tally.begun = pmlp__clock();
    tally.total_rows = data->rows;
    tally.has_labels = data->labels != NULL;
    for (i = 0; i < t->schedule->workers; i++) t->workers[i].busy = 0.0;
    return tally;
}

/* Losses in the order of the samples, in double. */
static void pmlp__tally_add(pmlp__tally *tally, const pmlp_trainer *t) {
    size_t i;
    for (i = 0; i < t->rows; i++) {
        tally->loss += t->row_loss[i];
        tally->hits += t->row_hit[i];
    }
    tally->rows += t->rows;
    tally->steps++;
}

static void pmlp__tally_stats(const pmlp__tally *tally, pmlp_trainer *t, pmlp_stats *stats) {
    const double seconds = pmlp__clock() - tally->begun;
    int i;
    for (i = 0; i < t->schedule->workers; i++) {
        const double idle = seconds > 0.0 ? 1.0 - t->workers[i].busy / seconds : 0.0;
        t->idle[i] = idle < 0.0 ? 0.0 : idle;
    }
    memset(stats, 0, sizeof *stats);
    stats->step = t->step;
    stats->epoch = t->epoch;
    stats->steps = tally->steps;
    stats->rows = tally->rows;
    stats->total_rows = tally->total_rows;
    stats->loss = tally->rows ? tally->loss / (double)tally->rows : 0.0;
    stats->accuracy = !tally->has_labels ? -1.0
                      : tally->rows      ? (double)tally->hits / (double)tally->rows
                                         : 0.0;
    stats->seconds = seconds;
    stats->samples_per_second = seconds > 0.0 ? (double)tally->rows / seconds : 0.0;
    stats->gradient_norm = t->gradient_norm;
    stats->workers = t->schedule->workers;
    stats->idle = t->idle;
}

static pmlp_result pmlp__train_batch(pmlp_trainer *t, const pmlp_data *data, const uint32_t *index,
                                     size_t first, size_t rows) {
    pmlp_result result;
    t->model->stale = true;
    result = pmlp__pass(t, data, index, first, rows, true);
    if (result != PMLP_OK) return result;
    t->step++;
    return PMLP_OK;
}

PMLP_API pmlp_result pmlp_trainer_step(pmlp_trainer *t, const pmlp_data *batch, pmlp_stats *stats) {
    pmlp_stats unused;
    pmlp__tally tally;
    pmlp_result result = pmlp__enter(t);
    if (result != PMLP_OK) return result;
    if (batch && batch->rows > t->desc.batch)
        result =
            pmlp__fail(&t->error, PMLP_ERROR_SHAPE, "data: %.0f rows are more than a batch of %.0f",
                       (double)batch->rows, (double)t->desc.batch);
    else result = pmlp__validate_data(t->model, batch, &t->error);
    if (result != PMLP_OK) return pmlp__leave(t, result);
    tally = pmlp__tally_begin(t, batch);
    result = pmlp__train_batch(t, batch, NULL, 0, batch->rows);
    if (result == PMLP_OK) {
        pmlp__tally_add(&tally, t);
        pmlp__tally_stats(&tally, t, stats ? stats : &unused);
    }
    return pmlp__leave(t, result);
}

static pmlp_result pmlp__epoch_order(pmlp_trainer *t, size_t rows) {
    if (t->desc.no_shuffle) return PMLP_OK;
    if (rows > t->order_size) {
        pmlp__delete(&t->desc.allocator, t->order);
        t->order_size = 0;
        t->order = (uint32_t *)pmlp__new(&t->desc.allocator, rows, sizeof *t->order);
        if (!t->order) return pmlp__no_memory(&t->error, "the order of an epoch's rows");
        t->order_size = rows;
    }
    pmlp__shuffle(t->desc.seed, t->epoch, t->order, rows);
    return PMLP_OK;
}

/* The batches of an epoch. The progress callback may call back in, one call at a time. */
static pmlp_result pmlp__epoch_batches(pmlp_trainer *t, const pmlp_data *data, pmlp__tally *tally,
                                       pmlp_stats *stats) {
    const uint32_t *order = t->desc.no_shuffle ? NULL : t->order;
    size_t first, rows;
    for (first = 0; first < data->rows; first += rows) {
        pmlp_result result;
        rows = data->rows - first < t->desc.batch ? data->rows - first : t->desc.batch;
        result = pmlp__train_batch(t, data, order, first, rows);
        if (result != PMLP_OK) return result;
        pmlp__tally_add(tally, t);
        if (t->desc.progress) {
            bool go_on;
            pmlp__tally_stats(tally, t, stats);
            pmlp__store(&t->no_query, 0);
            go_on = t->desc.progress(stats, t->desc.progress_user);
            while (pmlp__exchange(&t->no_query, 1)) pmlp__pause(); /* a query of another thread */
            if (!go_on)
                return pmlp__fail(&t->error, PMLP_ERROR_CANCELLED,
                                  "the progress callback stopped the epoch after %.0f of %.0f rows",
                                  (double)tally->rows, (double)tally->total_rows);
        }
    }
    t->epoch++;
    return PMLP_OK;
}

PMLP_API pmlp_result pmlp_trainer_epoch(pmlp_trainer *t, const pmlp_data *data, pmlp_stats *stats) {
    pmlp_stats unused;
    pmlp__tally tally;
    pmlp_result result = pmlp__enter(t);
    if (result != PMLP_OK) return result;
    if (!stats) stats = &unused;
    result = pmlp__validate_data(t->model, data, &t->error);
    if (result == PMLP_OK) tally = pmlp__tally_begin(t, data);
    if (result == PMLP_OK) result = pmlp__epoch_order(t, data->rows);
    if (result != PMLP_OK) return pmlp__leave(t, result);
    result = pmlp__epoch_batches(t, data, &tally, stats);
    if (result == PMLP_OK || result == PMLP_ERROR_CANCELLED) pmlp__tally_stats(&tally, t, stats);
    return pmlp__leave(t, result);
}

PMLP_API pmlp_result pmlp_trainer_eval(pmlp_trainer *t, const pmlp_data *data, pmlp_stats *stats) {
    pmlp_stats unused;
    pmlp__tally tally;
    size_t first, rows;
    pmlp_result result = pmlp__enter(t);
    if (result != PMLP_OK) return result;
    result = pmlp__validate_data(t->model, data, &t->error);
    if (result != PMLP_OK) return pmlp__leave(t, result);
    tally = pmlp__tally_begin(t, data);
    for (first = 0; result == PMLP_OK && first < data->rows; first += rows) {
        rows = data->rows - first < t->desc.batch ? data->rows - first : t->desc.batch;
        result = pmlp__pass(t, data, NULL, first, rows, false);
        if (result == PMLP_OK) pmlp__tally_add(&tally, t);
    }
    if (result == PMLP_OK) {
        tally.steps = 0;
        pmlp__tally_stats(&tally, t, stats ? stats : &unused);
    }
    return pmlp__leave(t, result);
}

/* Calls that compute nothing: allowed after a failure, and from the progress callback. */
static pmlp__atomic *pmlp__enter_query(pmlp_trainer *t) {
    if (!t) return NULL;
    if (!pmlp__exchange(&t->in_use, 1)) return &t->in_use;
    return pmlp__exchange(&t->no_query, 1) ? NULL : &t->no_query;
}

static pmlp_result pmlp__leave_query(pmlp__atomic *entered, pmlp_result result) {
    pmlp__store(entered, 0);
    return result;
}

PMLP_API pmlp_result pmlp_trainer_sync(pmlp_trainer *t) {
    pmlp_result result;
    pmlp__atomic *const entered = pmlp__enter_query(t);
    if (!entered) return t ? PMLP_ERROR_STATE : PMLP_ERROR_ARGUMENT;
    if (pmlp__is_mixed(t)) {
        result = pmlp__fail(&t->error, PMLP_ERROR_STATE, "the weights are lost: %.200s",
                            t->failure.text);
        return pmlp__leave_query(entered, result);
    }
    result = pmlp__read_weights(t);
    if (result == PMLP_OK) t->model->stale = false;
    else pmlp__fail(&t->error, result, "reading the weights back: %s", pmlp_result_text(result));
    return pmlp__leave_query(entered, result);
}

PMLP_API pmlp_result pmlp_trainer_set_learning_rate(pmlp_trainer *t, float learning_rate) {
    pmlp_result result = PMLP_OK;
    pmlp__atomic *const entered = pmlp__enter_query(t);
    if (!entered) return t ? PMLP_ERROR_STATE : PMLP_ERROR_ARGUMENT;
    if (pmlp__below_zero(learning_rate))
        result = pmlp__fail(&t->error, PMLP_ERROR_ARGUMENT,
                            "learning_rate: is not a finite number >= 0");
    else t->desc.learning_rate = learning_rate;
    return pmlp__leave_query(entered, result);
}

PMLP_API pmlp_result pmlp_trainer_gradient(pmlp_trainer *t, int layer, float *dw, float *db) {
    pmlp_result result;
    pmlp__atomic *const entered = pmlp__enter_query(t);
    if (!entered) return t ? PMLP_ERROR_STATE : PMLP_ERROR_ARGUMENT;
    if (layer < 0 || layer >= t->model->desc.layers) {
        result = pmlp__fail(&t->error, PMLP_ERROR_ARGUMENT, "layer: %d is not in 0 .. %d", layer,
                            t->model->desc.layers - 1);
    } else if (t->step == 0 || pmlp__load(&t->failed)) {
        result = pmlp__fail(&t->error, PMLP_ERROR_STATE, "there is no gradient %s",
                            t->step == 0 ? "before the first step" : "of a step that failed");
    } else {
        result = pmlp__read_layer(t, layer, PMLP_TENSOR_GRADIENTS, dw, db);
        if (result != PMLP_OK)
            pmlp__fail(&t->error, result, "reading the gradient: %s", pmlp_result_text(result));
    }
    return pmlp__leave_query(entered, result);
}

PMLP_API const pmlp_error *pmlp_trainer_error(const pmlp_trainer *t) {
    return t ? &t->error : NULL;
}

PMLP_API pmlp_trainer_desc pmlp_trainer_query_desc(const pmlp_trainer *t) {
    pmlp_trainer_desc nothing;
    memset(&nothing, 0, sizeof nothing);
    return t ? t->desc : nothing;
}

PMLP_API const pmlp_schedule *pmlp_trainer_schedule(const pmlp_trainer *t) {
    return t ? t->schedule : NULL;
}

PMLP_API pmlp_result pmlp_trainer_stage(const pmlp_trainer *t, int stage, pmlp_stage_info *info) {
    double total = 0.0, own = 0.0;
    const pmlp__stage *s;
    int l;
    if (!t || !info || stage < 0 || stage >= t->schedule->stages) return PMLP_ERROR_ARGUMENT;
    s = &t->stages[stage];
    info->worker = s->worker;
    info->first_layer = s->first_layer;
    info->layers = s->layers;
    info->first_column = s->first_column;
    info->columns = s->columns;
    for (l = 0; l < t->model->desc.layers; l++) {
        const double output = pmlp__output_cost(t->model, l);
        total += output * (double)pmlp__n_out(t->model, l);
        if (l >= s->first_layer && l < s->first_layer + s->layers)
            own += output * (double)(l == s->first_layer ? s->columns : pmlp__n_out(t->model, l));
    }
    info->cost = own / total;
    return PMLP_OK;
}

/*============================================================================================*/
/* >>verify                                                                                   */
/*============================================================================================*/

/* Two trainings side by side, one through the pipeline and one serially, from the same weights on
   the same batches; after each step everything that can be compared is compared as bits. */
/* A copy of the model with its trainer. */
typedef struct pmlp__run {
    pmlp_model *model;
    pmlp_trainer *trainer;
    pmlp_stats stats;
} pmlp__run;

static pmlp_result pmlp__run_begin(pmlp__run *run, const pmlp_model *model,
                                   const pmlp_trainer_desc *desc, pmlp_error *error) {
    const pmlp_result result = pmlp_model_clone(model, &run->model, error);
    return result == PMLP_OK ? pmlp_trainer_create(run->model, desc, &run->trainer, error) : result;
}

static pmlp_result pmlp__run_step(pmlp__run *run, const pmlp_data *batch, pmlp_error *error) {
    pmlp_result result = pmlp_trainer_step(run->trainer, batch, &run->stats);
    if (result == PMLP_OK) result = pmlp_trainer_sync(run->trainer);
    if (result != PMLP_OK && error) *error = *pmlp_trainer_error(run->trainer);
    return result;
}

static void pmlp__run_end(pmlp__run *run) {
    pmlp_trainer_destroy(run->trainer);
    pmlp_model_destroy(run->model);
}

static bool pmlp__differ(pmlp_verify_report *report, const char *what, int layer, size_t at,
                         size_t n_in, double pipeline, double serial) {
    report->identical = false;
    report->what = what;
    report->layer = layer;
    report->row = at / n_in;
    report->column = at % n_in;
    report->pipeline = pipeline;
    report->serial = serial;
    return true;
}

/* The first of n floats whose bits differ; n if none does. */
static size_t pmlp__first_difference(const float *a, const float *b, size_t n) {
    size_t i = 0;
    if (memcmp(a, b, n * sizeof *a) == 0) return n;
    while (memcmp(a + i, b + i, sizeof *a) == 0) i++;
    return i;
}

static bool pmlp__compare(const pmlp__run *pipeline, const pmlp__run *serial,
                          pmlp_verify_report *report) {
    const pmlp_model *p = pipeline->model, *s = serial->model;
    const pmlp_stats *ps = &pipeline->stats, *ss = &serial->stats;
    int l;
    if (memcmp(&ps->loss, &ss->loss, sizeof ps->loss) != 0)
        return pmlp__differ(report, "loss", -1, 0, 1, ps->loss, ss->loss);
    if (memcmp(&ps->gradient_norm, &ss->gradient_norm, sizeof ps->gradient_norm) != 0)
        return pmlp__differ(report, "gradient norm", -1, 0, 1, ps->gradient_norm,
                            ss->gradient_norm);
    for (l = 0; l < p->desc.layers; l++) {
        const size_t n_in = pmlp__n_in(p, l), n_out = pmlp__n_out(p, l);
        size_t at = pmlp__first_difference(p->w[l], s->w[l], n_in * n_out);
        if (at < n_in * n_out)
            return pmlp__differ(report, "weight", l, at, n_in, (double)p->w[l][at],
                                (double)s->w[l][at]);
        at = pmlp__first_difference(p->b[l], s->b[l], n_out);
        if (at < n_out)
            return pmlp__differ(report, "bias", l, at, 1, (double)p->b[l][at], (double)s->b[l][at]);
    }
    return false;
}

/* The next batch of data, in order, beginning again at its end. */
static pmlp_data pmlp__next_batch(const pmlp_model *model, const pmlp_data *data, size_t size,
                                  size_t *first) {
    pmlp_data batch = *data;
    batch.rows = data->rows - *first < size ? data->rows - *first : size;
    batch.x = data->x + *first * pmlp__n_in(model, 0);
    if (data->labels) batch.labels = data->labels + *first;
    if (data->targets)
        batch.targets = data->targets + *first * pmlp__n_out(model, model->desc.layers - 1);
    *first += batch.rows;
    if (*first == data->rows) *first = 0;
    return batch;
}

PMLP_API pmlp_result pmlp_verify(const pmlp_model *model, const pmlp_trainer_desc *desc,
                                 const pmlp_data *data, int steps, pmlp_verify_report *report,
                                 pmlp_error *error) {
    pmlp_trainer_desc d;
    pmlp__run pipeline, serial;
    pmlp_result result;
    size_t first = 0;
    memset(&pipeline, 0, sizeof pipeline);
    memset(&serial, 0, sizeof serial);
    if (!report) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "report: is NULL");
    memset(report, 0, sizeof *report);
    report->what = "";
    report->layer = -1;
    if (!model || !desc || steps < 1)
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "%s",
                          !model  ? "model: is NULL"
                          : !desc ? "desc: is NULL"
                                  : "steps: is less than 1");
    result = pmlp__validate_data(model, data, error);
    if (result != PMLP_OK) return result;
    d = *desc;
    d.gradient_norm = true;
    result = pmlp__run_begin(&pipeline, model, &d, error);
    d.workers = d.microbatches = 1;
    d.schedule = PMLP_SCHEDULE_SEQUENTIAL;
    d.custom = NULL;
    d.cuts = NULL;
    d.edges = NULL;
    d.slots = 0;
    d.no_threads = true;
    if (result == PMLP_OK) result = pmlp__run_begin(&serial, model, &d, error);
    report->identical = result == PMLP_OK;
    while (result == PMLP_OK && report->identical && report->steps < steps) {
        const size_t size = pmlp_trainer_query_desc(serial.trainer).batch;
        const pmlp_data batch = pmlp__next_batch(model, data, size, &first);
        result = pmlp__run_step(&pipeline, &batch, error);
        if (result == PMLP_OK) result = pmlp__run_step(&serial, &batch, error);
        if (result == PMLP_OK) {
            report->steps++;
            pmlp__compare(&pipeline, &serial, report);
        }
    }
    if (result == PMLP_OK) result = pmlp_model_hash(pipeline.model, &report->hash, error);
    else report->identical = false;
    pmlp__run_end(&pipeline);
    pmlp__run_end(&serial);
    return result;
}

/*============================================================================================*/
/* >>io: IDX files                                                                            */
/*============================================================================================*/

/* An IDX file is a magic number (0, 0, type, number of dimensions), the sizes as 32-bit big-endian
   integers, and the data, the last dimension fastest. Sizes are compared with the length of the
   file before anything is allocated. */
static uint32_t pmlp__big_endian(const unsigned char *p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | (uint32_t)p[3];
}

PMLP_API void pmlp_images_free(pmlp_images *images) {
    if (!images) return;
    pmlp__delete(&images->allocator, images->x);
    pmlp__delete(&images->allocator, images->labels);
    memset(images, 0, sizeof *images);
}

/* The header of an IDX file of unsigned bytes with `dimensions` sizes; what follows must be their
   product in bytes, neither less nor more. */
static pmlp_result pmlp__idx_header(const unsigned char *bytes, size_t size, unsigned dimensions,
                                    const char *name, size_t *sizes, pmlp_error *error) {
    const size_t header = 4 + 4 * (size_t)dimensions;
    const uint32_t magic = 0x800u + dimensions;
    size_t product = 1, i;
    if (size < header)
        return pmlp__fail(error, PMLP_ERROR_PARSE, "%s: %.0f bytes are too few for an IDX header",
                          name, (double)size);
    if (pmlp__big_endian(bytes) != magic)
        return pmlp__fail(error, PMLP_ERROR_PARSE,
                          "%s: begins with 0x%08x, an unpacked IDX file of %s begins with 0x%08x",
                          name, (unsigned)pmlp__big_endian(bytes),
                          dimensions == 1 ? "labels" : "images", (unsigned)magic);
    for (i = 0; i < dimensions; i++) {
        sizes[i] = pmlp__big_endian(bytes + 4 + 4 * i);
        if (sizes[i] < 1)
            return pmlp__fail(error, PMLP_ERROR_PARSE, "%s: says that it holds nothing", name);
        if (pmlp__mul_overflows(product, sizes[i]))
            return pmlp__fail(error, PMLP_ERROR_PARSE, "%s: says that it is larger than memory",
                              name);
        product *= sizes[i];
    }
    if (size - header != product)
        return pmlp__fail(error, PMLP_ERROR_PARSE,
                          "%s: its header promises %.0f bytes of data, but %.0f follow", name,
                          (double)product, (double)(size - header));
    return PMLP_OK;
}

static pmlp_result pmlp__idx_pair(const unsigned char *image_bytes, size_t image_size,
                                  const char *image_name, const unsigned char *label_bytes,
                                  size_t label_size, const char *label_name, size_t limit,
                                  const pmlp_allocator *allocator, pmlp_images *images,
                                  pmlp_error *error) {
    size_t sizes[3] = {0, 0, 0}, labels[1] = {0}, pixels, i;
    pmlp_result result;
    result = pmlp__idx_header(image_bytes, image_size, 3, image_name, sizes, error);
    if (result == PMLP_OK)
        result = pmlp__idx_header(label_bytes, label_size, 1, label_name, labels, error);
    if (result != PMLP_OK) return result;
    if (sizes[0] != labels[0])
        return pmlp__fail(error, PMLP_ERROR_PARSE, "%s holds %.0f images, but %s holds %.0f labels",
                          image_name, (double)sizes[0], label_name, (double)labels[0]);
    pixels = sizes[1] * sizes[2];
    images->allocator = pmlp__allocator_or_default(allocator);
    images->rows = limit > 0 && limit < sizes[0] ? limit : sizes[0];
    images->height = sizes[1];
    images->width = sizes[2];
    images->x = (float *)pmlp__new(&images->allocator, images->rows * pixels, sizeof *images->x);
    images->labels = (int *)pmlp__new(&images->allocator, images->rows, sizeof *images->labels);
    if (!images->x || !images->labels) {
        pmlp_images_free(images);
        return pmlp__no_memory(error, "the images");
    }
    for (i = 0; i < images->rows * pixels; i++) images->x[i] = (float)image_bytes[16 + i] / 255.0f;
    for (i = 0; i < images->rows; i++) images->labels[i] = label_bytes[8 + i];
    return PMLP_OK;
}

PMLP_API pmlp_result pmlp_images_parse(const void *image_bytes, size_t image_size,
                                       const void *label_bytes, size_t label_size, size_t limit,
                                       const pmlp_allocator *allocator, pmlp_images *images,
                                       pmlp_error *error) {
    if (!images) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "images: is NULL");
    memset(images, 0, sizeof *images);
    if (allocator && pmlp__is_half(allocator))
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "allocator: has only one of alloc and free");
    if (!image_bytes || !label_bytes)
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "%s: is NULL",
                          image_bytes ? "label_bytes" : "image_bytes");
    return pmlp__idx_pair((const unsigned char *)image_bytes, image_size, "the image file",
                          (const unsigned char *)label_bytes, label_size, "the label file", limit,
                          allocator, images, error);
}

/* The end of a path that is too long for a sentence. */
static const char *pmlp__path_end(const char *path) {
    const size_t length = strlen(path), shown = 100;
    return length > shown ? path + length - shown : path;
}

/* A whole file; *bytes must be freed with pmlp__delete. */
static pmlp_result pmlp__read_file(const char *path, const pmlp_allocator *allocator,
                                   unsigned char **bytes, size_t *size, pmlp_error *error) {
    FILE *file = fopen(path, "rb");
    size_t capacity = 0;
    *bytes = NULL;
    *size = 0;
    if (!file)
        return pmlp__fail(error, PMLP_ERROR_FILE, "%s: cannot be opened", pmlp__path_end(path));
    for (;;) {
        if (*size == capacity) {
            unsigned char *grown;
            capacity = capacity ? 2 * capacity : 1 << 16;
            grown = (unsigned char *)pmlp__new(allocator, capacity, 1);
            if (grown && *size) memcpy(grown, *bytes, *size);
            pmlp__delete(allocator, *bytes);
            *bytes = grown;
            if (!grown) break;
        }
        *size += fread(*bytes + *size, 1, capacity - *size, file);
        if (*size < capacity) break;
    }
    if (*bytes && !ferror(file)) {
        fclose(file);
        return PMLP_OK;
    }
    fclose(file);
    if (!*bytes) return pmlp__no_memory(error, "a file");
    pmlp__delete(allocator, *bytes);
    *bytes = NULL;
    return pmlp__fail(error, PMLP_ERROR_FILE, "%s: cannot be read", pmlp__path_end(path));
}

PMLP_API pmlp_result pmlp_images_load(const char *image_path, const char *label_path, size_t limit,
                                      const pmlp_allocator *allocator, pmlp_images *images,
                                      pmlp_error *error) {
    const pmlp_allocator memory = pmlp__allocator_or_default(allocator);
    unsigned char *image_bytes = NULL, *label_bytes = NULL;
    size_t image_size, label_size;
    pmlp_result result;
    if (!images) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "images: is NULL");
    memset(images, 0, sizeof *images);
    if (pmlp__is_half(&memory))
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "allocator: has only one of alloc and free");
    if (!image_path || !label_path)
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "%s: is NULL",
                          image_path ? "label_path" : "image_path");
    result = pmlp__read_file(image_path, &memory, &image_bytes, &image_size, error);
    if (result == PMLP_OK)
        result = pmlp__read_file(label_path, &memory, &label_bytes, &label_size, error);
    if (result == PMLP_OK)
        result = pmlp__idx_pair(image_bytes, image_size, pmlp__path_end(image_path), label_bytes,
                                label_size, pmlp__path_end(label_path), limit, allocator, images,
                                error);
    pmlp__delete(&memory, image_bytes);
    pmlp__delete(&memory, label_bytes);
    return result;
}

#endif /* PIPEMLP_IMPLEMENTATION */
