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
          pmlp_data data = {1000, &x[0][0], quadrant, NULL, false};
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
      >>common         results, errors, memory, log    >>platform        threads, clock, files
      >>model          what is trained                 >>memory          memory, errors, random
      >>schedule       who does what when              >>kernels         what the CPU computes
      >>timeline       what ran when, and pictures     >>cpu-backend     the CPU's operations
      >>trainer        runs a schedule                 >>check           proves schedules
      >>images         IDX files                       >>simulate        times them
      >>files          models, checkpoints             >>auto            searches for one
      >>backend        how to plug in other hardware   >>pictures        text, SVG, traces
      >>group          several ranks, one training     >>edges >>thread-groups >>partition
      >>cuda           pipemlp_cuda.cu, for GPUs       >>validation >>stage >>ranks >>worker
                                                       >>verify >>ceiling >>io

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
      6. pmlp_trainer_save() now and then, so that pmlp_trainer_load() can go on after a crash;
         pmlp_model_save() and pmlp_model_load() for what has been trained.
      7. pmlp_trainer_destroy(), which writes the weights back, then pmlp_model_destroy().

      With several processes, each does all this, with its own desc.group: see ON RANKS.

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
      wait, or the update comes; desc.w_rows = 1 does each W where the schedule has it. The last W
      goes with the update, which a back end can then do while the gradient is in the cache.

      Where to cut? Layers differ in size, and the first is often the largest: of 784-512-256-128-10
      it is 62 % of the arithmetic, so that two workers gain 1.62x at most if a stage is made of
      whole layers. A boundary may therefore also lie inside the first layer (pmlp_cut): one stage
      computes some of its outputs, the next the others, each from the input rows themselves. For
      these outputs the upper stage needs nobody: it computes them while it would otherwise wait for
      an F, above all while the pipeline fills. pmlp_partition() cuts by counting multiply-adds, or
      by what pmlp_measure_layers() finds that each layer costs (desc.measure_layers).

      How much a pipeline can gain has three bounds. Balance: the slowest stage sets the pace. Fill
      and drain: m / (m + p - 1) for 1F1B. Hand-offs: each costs a little, so that micro-batches
      should not get arbitrarily small. pmlp_ceiling() tells all three for your network, which of
      them binds, and what to change.

   ON SCHEDULES

      A schedule is data: a list of actions for each worker. Five readers share it, and none has a
      copy of the rules of its own: the checker proves it, the simulator times it, the printer and
      the pictures show it, the trainer runs it, the search for `auto` looks for better ones.
      Builders write the known ones (pmlp_schedule_kind). In units of F = I = W = 1, for p = 4 and
      m = 8, where 24 would be ideal (those with two stages per worker have half the cost each):

                          makespan   most held   what is new
         sequential          96        1         nothing overlaps
         gpipe               33        8         all forwards, then all backwards
         1f1b                33        4         backwards as soon as there are any
         eager-1f1b          33        7         runs further ahead, so that hand-offs may take time
         interleaved         28.5     11 halves  two stages per worker: the bubble is halved
         looped-bfs          28.5     16 halves  the same as GPipe does it
         zb-h1               27        4         W fills the bubble at the end
         zb-h2               27        7         and, with more memory, that at the beginning
         zb-v                25.5      8 halves  both, in the memory of 1F1B, in the shape of a V
         dualpipe-v          25.5      9 halves  the V in eight phases
         auto                ...                 the shortest that a search finds for costs and
                                                 memory given

      You can write your own, as text, one row per worker, `stage op micro-batch`, or action by
      action with pmlp_schedule_append():

         0F0,0F1,0B0,0F2,0B1,0B2
         1F0,1B0,1F1,1B1,1F2,1B2

      pmlp_schedule_parse() reads it, pmlp_schedule_check() proves it or says what is wrong with
      it, pmlp_schedule_draw() shows it, and desc.custom trains with it. A worker may own several
      stages. The text is that of torch.distributed.pipelining's CSV files.

   ON DEADLOCK

      The check is a proof: queues with blocking ends form a Kahn network (Kahn, 1974), in which it
      does not depend on timing whether everybody reaches the end. One replay decides for all runs.

      It does depend on what lies between the workers. pmlp_schedule_replay() runs the same lists
      over other transports. If sender and receiver have to meet (rendezvous), programs that send
      right after and receive right before they compute get stuck with every schedule but the two
      simplest; small messages hide that, because most transports buffer those. Posting neighbouring
      hand-offs together (grouped) cures some schedules. One queue for all that one worker sends
      another mixes up the V shapes, since a worker's two stages send in one direction. What always
      works is one queue per boundary and direction with slots enough: one, unless stages loop
      (interleaved, looped-bfs), and never more than m, which the trainer has by default; or one
      order of all hand-offs that everybody keeps to: pmlp_schedule_lower_in_order(). A deadlock is
      reported as the circle that it is:

         deadlock: worker 0 waits for worker 1 to take F(1) of stage 0, which waits for worker 0 to
         take B(0) of stage 1

   ON ASYNCHRONOUS TRAINING

      Fill and drain go away if nobody waits for the batch to end. PipeDream (pipedream) updates a
      stage after each micro-batch and lets the next in at once. The price: a micro-batch's gradient
      is subtracted from weights that have been updated up to p - 1 - s times since its forward read
      them in stage s. That is its staleness; pmlp_trainer_stage() tells it as measured. So that at
      least forward and backward of a micro-batch agree, old versions of the weights are kept, p - s
      of them (weight stashing). desc.no_stashing does without: a gradient then belongs to no set of
      weights that ever was, which may or may not hurt. (It makes no difference to a stage that has
      columns of the first layer only, since no backward there reads weights.)
      PipeDream-2BW (pipedream-2bw) updates every m micro-batches, always from weights one update
      old: two versions, the same staleness everywhere, and the same bits for any number of workers.

      None of them gives the bits of serial training, except pipedream on one worker with one
      micro-batch, which is just that; pmlp_verify() tells. They are as
      repeatable as the synchronous ones: which version is read follows from the lists, not from
      timing. An epoch is one long pipeline, drained every 65,536 rows. A last batch that is smaller
      is cut into m parts as well: with pipedream these are m updates from very few rows each, which
      can cost more accuracy than staleness does; choose a batch that divides the data.

   ON TIMELINES

      desc.trace keeps when what ran in the last steps. pmlp_trainer_timeline() makes a timeline of
      it, pmlp_schedule_timeline() one of a simulation; pmlp_trainer_costs() turns what was measured
      into costs for the simulator. pmlp_timeline_worker() says where a worker's time went: busy,
      fill, waiting and for whom, hand-offs, drain. pmlp_timeline_draw() draws it as text,
      pmlp_timeline_write_svg() as a picture, pmlp_timeline_write_trace() for ui.perfetto.dev. Laid
      over the simulated one, the picture says where the difference went.

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
      even for 1F1B. pmlp_check.peak says what a trainer that kept only what it must would hold. An
      asynchronous one keeps a few batches, used in turn, and several versions of the weights. Steps
      allocate nothing; an epoch allocates the order of its rows once, and an asynchronous one its
      lists when their length changes.

   ON THREADS

      A trainer with p workers starts p - 1 threads; the thread that calls is worker 0 (of those
      that the rank has, if there are several). Idle workers spin for about a millisecond, then
      sleep; where the one that is waited for needs their core, as with more workers than cores or
      beside other programs, they give it away almost at once. One call at a time per trainer;
      different trainers and models are independent. pmlp_trainer_error(), _query_desc(),
      _schedule(), _stage() and _destroy() take no lock: call them from any thread, but not while
      another call of the trainer runs. Schedules and timelines may be read by several threads at
      once; only pmlp_schedule_append() changes one.
      desc.no_threads runs the same lists on the calling thread alone, with the same bits. Each
      worker makes its layers and buffers on its own thread, so that memory lies near the core that
      uses it; desc.bind_threads keeps it there.

   ON FILES

      Models and checkpoints are files in the format safetensors: a length, a header in JSON, then
      numbers, little-endian on every machine. The tensors have PyTorch's names and layout,
      layers.0.weight [n_out][n_in] and layers.0.bias [n_out], so that Python opens what C has
      saved, and C what Python has:

         from safetensors.torch import load_file, save_file
         weights = load_file("model.safetensors")             # of pmlp_model_save()
         save_file(net.state_dict(), "net.safetensors")       # for pmlp_model_load()

      A model's file needs nothing but weights and biases of layers that fit together, named
      PREFIX<number>.weight and .bias with one prefix, in ascending order: those of an nn.Sequential
      ("0.weight", "2.weight") or "fc1.weight", "fc2.weight" will do, in F32, F64, F16 or BF16.
      Activations and loss stand in the header's metadata; where they do not, they are the defaults:
      ReLU, linear at the end, cross-entropy.

      pmlp_trainer_save() adds everything else that a training consists of: moments, counters, the
      learning rate, where in which epoch it is, and the settings that decide what comes next.
      pmlp_trainer_load() takes them up in a trainer that has the same settings: batch, optimizer
      and its numbers, seed. It does not matter how many workers, stages and micro-batches either
      has, nor the schedule, the threads or, within its own promise, the back end: stopped after any
      step and resumed, a synchronous training ends in the bits of one that never stopped. So does
      pipedream, with the same workers and micro-batches. Versions of the weights that an
      asynchronous pipeline keeps are not saved: pipedream-2bw reads its first batch after a load
      from the weights themselves, not those one update older, as it does at the very beginning,
      and goes on from there.

      An epoch may be interrupted, by the progress callback or by the end of the program. The
      position in it is kept, and saved: the next pmlp_trainer_epoch() does the rest, in the same
      order, and tells loss and accuracy of the whole. pmlp_trainer_restart_epoch() if you would
      rather begin it anew.

      A file appears whole or not at all: it is written beside the old one, flushed to the disk and
      renamed. A crash or a loss of power at any moment leaves the old file or the new one, and
      perhaps a FILE.<process>-<n>.tmp, which may be removed; a full disk leaves the old one, and
      an error that says so. What is read is not trusted: a header that says anything but what the
      format allows is refused, before any memory is asked for by its word; and files of this
      library carry a checksum over metadata and tensors, so that no bit changes unseen.

   ON RANKS

      A pipeline may be spread over processes, on one machine or several, and several pipelines may
      stand side by side. A rank is one trainer that has some of the workers; desc.group tells it
      which it is and how it reaches the others. With 4 ranks, desc.workers = 4 and desc.replicas =
      2, each rank has two workers:

         replica 0, rows  0 .. 63    rank 0: workers 0, 1    rank 1: workers 2, 3
         replica 1, rows 64 .. 127   rank 2: workers 0, 1    rank 3: workers 2, 3

      Every rank runs the same program: it creates the same model, sets up the same desc, makes the
      same calls with the same data, in the same order. Each gets the same losses, and all weights
      at every pmlp_trainer_sync(). Before a call begins the ranks compare what they are about to
      do, and what differs is named with both values; of the data that is the number of its rows and
      what three of them hold. Within a step they talk over edges alone, as workers of one process
      do; then they wait for each other once, at the gate in front of the updates, and once at the
      end. How processes are started, and how they find each other, is the group's affair:
      pipemlp_cuda.cu has one for NCCL, the examples have one for MPI, and
      pmlp_thread_groups_create() makes ranks of threads, which need nothing:

         pmlp_group groups[2];
         pmlp_thread_groups_create(2, NULL, groups, &error);
         desc.group = &groups[i];                  // on thread i, with a model of its own
         desc.replicas = 2;

      Where the gradients of replicas meet there is a choice. The chain, which is the default, gives
      the bits of one worker: a layer's sum goes from replica to replica, each adding its rows to
      it, in the order of the rows, and what it has become goes back the same way. While replica 1
      has one layer, replica 0 has the next; but the largest layer is waited for R times, and each
      gradient is sent twice. desc.allreduce lets each replica sum its own rows, and adds the sums
      up: nobody waits for a turn, and W costs an R-th; the bits are those of no other R, though
      always the same for this one. Updates are made on each replica in either case.

      No rank updates before all have all gradients. Where a rank fails, the others hear of it, and
      their calls return PMLP_ERROR_RANK with its number and its reason; where it says nothing any
      more, they wait desc.deadline seconds and name it, with what they waited for. Nothing hangs.
      If that was before the gate, each rank still has the weights of the last complete step; but a
      rank has only those of its own stages, so that what pmlp_trainer_sync() wrote last is what
      there is to go on from, unless each rank has a whole pipeline. Such a group cannot be used
      any more, and pmlp_trainer_destroy() asks nobody then.

   ON ERRORS

      Everything that can fail returns a pmlp_result, 0 being success, with a sentence in a
      pmlp_error of yours or in pmlp_trainer_error(). When a worker fails inside a step, the first
      failure is kept, all workers stop, and the call returns it with stage, micro-batch and
      operation; nobody hangs. No update of a synchronous schedule begins before every micro-batch
      has been through all stages and back, on all ranks, so that a step which fails earlier leaves
      the weights as they were.

      What is wrong with a desc or with data is found before anything is computed or changed, and
      all fields that are wrong are named at once. Mistakes, what they return, and how the sentence
      goes on or begins:

         NULL for an object, or a desc        ARGUMENT   model: is NULL
         a field out of its range             ARGUMENT   microbatches: is not in 1 .. 1048576
         a layer of no outputs                ARGUMENT   sizes[1]: 0 is less than 1
         a network too large for memory       MEMORY     out of memory for a model's weights
         more stages than places to cut       SHAPE      workers: more stages than the layers ...
         no rows, or more than fit            ARGUMENT   data: 0 rows are not in 1 .. 2147483647
         a step of more rows than a batch     SHAPE      data: 200 rows are more than a batch of 128
         no labels, targets of the wrong kind ARGUMENT   data: cross-entropy needs labels
         a label that is no class             DATA       data: the label 10 of row 7 is not in ...
         infinity or NaN in data or weights,  NUMBER     step 7: row 3 of the data: input 5 is nan
           a loss or gradient out of range    NUMBER     step 7: ...: output 1 of layer 2 is inf
         a second trainer for one model       STATE      model: has a trainer already
         reading weights that a trainer has   STATE      the model's weights are with its trainer
         a call while another one runs        STATE      (the text stays that of the running call)
         a call after a failure in a step     STATE      the trainer has failed before and ...
         a schedule that breaks a rule        SCHEDULE   what is missing, and where
         one that cannot finish               DEADLOCK   the circle of who waits for whom
         ranks that differ in a setting       RANK       the ranks do not agree: batch: 128 on ...
         a rank that is gone, or silent       RANK       worker 1 waited 60 s for rank 2 in ...
         a file that is none, or damaged      PARSE      the file's name, and what is wrong in it
         one that cannot be read or written   FILE       the path, and the system's reason

   ON OTHER HARDWARE

      A back end is a table of functions, a layer's operations (see >>backend); edges, which carry
      activations and gradients from stage to stage, are another. Both are public: fill in a table,
      set desc.backend or desc.edges. The tables in this file are the CPU and threads of one
      process. pipemlp_cuda.cu, beside this file, has those for NVIDIA GPUs; see >>cuda.

      Libraries of products add up in an order of their own, which changes with the number of rows.
      A back end that uses them says that it is not `exact`, and what it promises is less: not the
      bits of the whole batch, but those of one worker with the same micro-batches.

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
    X(PMLP_ERROR_NUMBER, "a number is infinite or not a number")                               \
    X(PMLP_ERROR_RANK, "another rank has failed, cannot be reached or wants something else")    \
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
    char text[512];                /* one sentence, no newline, always terminated */
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
    bool constant;        /* a promise: what these pointers point to will not change while the
                             trainer lives. A back end with memory of its own then keeps a copy */
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
/* Runs x [rows][n_in of layer 0] through the network on the calling thread: y [rows][n_out of the
   last layer], the caller's, holds the class probabilities if the loss is softmax cross-entropy,
   else the last layer's outputs. Several threads may predict with one model at a time. Packs the
   weights on each call, so give it many rows at once. A NaN in x is a NaN in y, and no error.
   Errors: ARGUMENT; STATE as above; MEMORY. */
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
    PMLP_SCHEDULE_DEFAULT,      /* 1F1B */
    PMLP_SCHEDULE_SEQUENTIAL,   /* one micro-batch at a time: no overlap at all */
    PMLP_SCHEDULE_GPIPE,        /* all forwards, then all backwards (Huang et al., 2019) */
    PMLP_SCHEDULE_1F1B,         /* warm up, then one forward, one backward (Narayanan et al., 2019,
                                   the flushing form of Narayanan et al., 2021) */
    PMLP_SCHEDULE_EAGER_1F1B,   /* 1F1B with twice the warm-up: hides the time of hand-offs */
    PMLP_SCHEDULE_INTERLEAVED,  /* 1F1B over v stages per worker (Narayanan et al., 2021); m must
                                   split into m / p rounds of equal size */
    PMLP_SCHEDULE_LOOPED_BFS,   /* GPipe over v stages per worker, one stage after the other
                                   (Lamy-Poirier, 2023) */
    PMLP_SCHEDULE_ZB_H1,        /* 1F1B with W put off into the bubble (Qi et al., 2024) */
    PMLP_SCHEDULE_ZB_H2,        /* the same with twice the warm-up: no bubble between a worker's
                                   first action and its last */
    PMLP_SCHEDULE_ZB_V,         /* two stages per worker, in the shape of a V: the first worker also
                                   has the last stage (Qi et al., 2024) */
    PMLP_SCHEDULE_DUALPIPE_V,   /* the same shape, eight phases (DeepSeek-AI, 2025); m >= 2 p */
    PMLP_SCHEDULE_AUTO,         /* found by search for given costs and memory */
    PMLP_SCHEDULE_PIPEDREAM,    /* asynchronous: an update after every micro-batch, no flush
                                   (Narayanan et al., 2019) */
    PMLP_SCHEDULE_PIPEDREAM_2BW,/* asynchronous: an update after every m micro-batches, from weights
                                   one update old; m >= p (Narayanan et al., 2021b) */
    PMLP_SCHEDULE_KIND_COUNT
} pmlp_schedule_kind;

/* "default", "sequential", "gpipe", "1f1b", "eager-1f1b", "interleaved", "looped-bfs", "zb-h1",
   "zb-h2", "zb-v", "dualpipe-v", "auto", "pipedream", "pipedream-2bw"; "?" for a value that is
   none. Static storage. */
PMLP_API const char *pmlp_schedule_kind_name(pmlp_schedule_kind kind);
/* The kind of that name; PMLP_SCHEDULE_DEFAULT if there is none. */
PMLP_API pmlp_schedule_kind pmlp_schedule_kind_of(const char *name);

/* What actions cost and hold, in any units, 1e100 at most. All-zero means F = I = W = 1, U
   free, hand-offs free, and every stage holds 1 per micro-batch. The arrays are read during a
   call only. */
typedef struct pmlp_costs {
    const double *f, *i, *w;    /* [S] each, of one micro-batch; NULL means 1 for every stage */
    const double *u;            /* [S]; NULL means 0 */
    double latency;             /* of a hand-off between different workers: from the end of the
                                   producer to the earliest begin of the consumer */
    double per_byte;            /* what each byte of the message adds to that */
    const double *message_bytes;/* [S - 1]: one micro-batch across the boundary above stage s,
                                   either way; NULL means 0 */
    const double *held;         /* [S]: what a stage keeps of one micro-batch from its F to its W;
                                   NULL means 1, so that sums count micro-batches */
    int stages;                 /* S, for which the arrays are; 0: whatever they are used for */
    const double *ahead;        /* [S]: the part of f that needs nothing from the stage below, which
                                   a stage of a synchronous schedule does while it would otherwise
                                   wait for an F; NULL means 0. What a cut inside layer 0 leaves to
                                   the stage above is such a part */
} pmlp_costs;

typedef struct pmlp_schedule pmlp_schedule;

typedef struct pmlp_schedule_desc {
    pmlp_schedule_kind kind;  /* default 1F1B */
    int workers;              /* p; default 1 */
    int virtual_stages;       /* v, stages per worker; default 2 for interleaved, looped BFS, ZB-V
                                 and DualPipeV, which fixes it, else 1. Stage c p + r is worker r's
                                 chunk c; in the V shapes worker r has stages r and 2 p - 1 - r */
    int microbatches;         /* m; default 1 */
    int batches;              /* asynchronous kinds: so many batches of m micro-batches follow each
                                 other without a flush; the schedule then has m * batches
                                 micro-batches; default 1 */
    const pmlp_costs *costs;  /* auto: what it minimizes the makespan for; default all 1 */
    double memory;            /* auto: most that a worker may hold at once, in the unit of
                                 costs->held; default: no limit */
    pmlp_allocator allocator; /* default malloc and free */
} pmlp_schedule_desc;

/* Builds a schedule. *schedule is NULL on failure. Errors: ARGUMENT (also: a kind that cannot have
   this p, v, m; a memory limit below what one micro-batch in flight needs), MEMORY. */
PMLP_API pmlp_result pmlp_schedule_create(const pmlp_schedule_desc *desc, pmlp_schedule **schedule,
                                          pmlp_error *error);
/* A schedule without actions, to be filled with pmlp_schedule_append(): stage_worker [stages] says
   which worker has each stage; each worker must have one. allocator may be NULL. Errors: ARGUMENT,
   MEMORY. */
PMLP_API pmlp_result pmlp_schedule_empty(int workers, int stages, int microbatches,
                                         const int *stage_worker, const pmlp_allocator *allocator,
                                         pmlp_schedule **schedule, pmlp_error *error);
/* Adds an action at the end of the list of the worker that has its stage; microbatch is ignored for
   U, of which each stage needs one. Nothing else is looked at: that is the checker's work. With a
   SEND or RECV the schedule becomes a lowered one, whose lists are taken as they are. Ends the life
   of what pmlp_schedule_actions() returned for that worker. Errors: ARGUMENT, MEMORY. */
PMLP_API pmlp_result pmlp_schedule_append(pmlp_schedule *schedule, pmlp_op op, int stage,
                                          int microbatch, pmlp_error *error);
/* Reads the text form: one row per worker, actions separated by commas, `0F0,0F1,1B0` being stage,
   op, micro-batch; empty cells and cells of blanks are skipped, '\r' is allowed, blank rows after
   the last are ignored. It is the compute-only CSV of torch.distributed.pipelining (without
   OVERLAP_F_B cells). `nU` (update of stage n, no micro-batch) may be left out: it is then added at
   the end of the row. Any mixture of B and I, W is read; whether it makes sense is for
   pmlp_schedule_check() to say. Synchronous schedules only. `text` need not be terminated.
   allocator may be NULL. Errors: PARSE with row and cell; SCHEDULE if two workers claim a stage or
   a stage has no worker; MEMORY. */
PMLP_API pmlp_result pmlp_schedule_parse(const char *text, size_t size,
                                         const pmlp_allocator *allocator, pmlp_schedule **schedule,
                                         pmlp_error *error);
/* NULL is allowed. */
PMLP_API void pmlp_schedule_destroy(pmlp_schedule *schedule);

PMLP_API int pmlp_schedule_workers(const pmlp_schedule *schedule);      /* p */
PMLP_API int pmlp_schedule_stages(const pmlp_schedule *schedule);       /* S */
PMLP_API int pmlp_schedule_microbatches(const pmlp_schedule *schedule); /* m, or m * batches */
/* True unless updates come before all gradients of a batch are there (PipeDream and its kin). */
PMLP_API bool pmlp_schedule_is_synchronous(const pmlp_schedule *schedule);
/* The worker that owns the stage; -1 if there is no such stage. */
PMLP_API int pmlp_schedule_stage_worker(const pmlp_schedule *schedule, int stage);
/* Versions of a stage's weights that must be kept so that each backward finds those of its forward:
   1 for synchronous schedules; 0 if there is no such stage. */
PMLP_API int pmlp_schedule_versions(const pmlp_schedule *schedule, int stage);
/* The worker's list, owned by the schedule; NULL and *count 0 if there is no such worker. */
PMLP_API const pmlp_action *pmlp_schedule_actions(const pmlp_schedule *schedule, int worker,
                                                  int *count);

/* Writes the text form that pmlp_schedule_parse() reads into buffer (terminated if size > 0, cut if
   too small); lowered schedules, with SEND and RECV, and asynchronous ones, with `nUi` for the
   update after micro-batch i, are written alike but not read. *length, which may be NULL, becomes
   the full length without the terminator. An update that stands at the end of its row, where
   parsing would add it, is left out. Errors: ARGUMENT. */
PMLP_API pmlp_result pmlp_schedule_print(const pmlp_schedule *schedule, char *buffer, size_t size,
                                         size_t *length);

/* Makes a new schedule with the hand-offs as actions of their own: B becomes I, W; each SEND stands
   right after what it sends, each RECV right before what needs it; stages of one worker hand over
   without either. This is what the trainer runs between threads. Errors: SCHEDULE if it is lowered
   already; MEMORY. */
PMLP_API pmlp_result pmlp_schedule_lower(const pmlp_schedule *schedule, pmlp_schedule **lowered,
                                         pmlp_error *error);
/* The same, but all hand-offs follow one order in time that all workers share: each SEND stands
   right after what it sends, each RECV where the simulator says that its sender is done. Workers
   that meet for each hand-off then cannot wait in a circle. costs may be NULL. Errors: as above,
   and the simulator's. */
PMLP_API pmlp_result pmlp_schedule_lower_in_order(const pmlp_schedule *schedule,
                                                  const pmlp_costs *costs, pmlp_schedule **lowered,
                                                  pmlp_error *error);

/* The lists as the trainer runs them (desc.w_rows): I and W apart, W put off until `most`
   micro-batches of a stage are together, the worker would have to wait, or an update comes. Which
   of these is the case depends on time, hence the costs, which may be NULL. What the trainer
   computes in one piece stands as several W here. The gain over the schedule as it was written: a
   gradient leaves before its W, and W fills the bubble. Time grows with actions times workers.
   Errors: ARGUMENT; the checker's; SCHEDULE if it is lowered already; MEMORY. */
PMLP_API pmlp_result pmlp_schedule_put_off(const pmlp_schedule *schedule, const pmlp_costs *costs,
                                           int most, pmlp_schedule **out, pmlp_error *error);

typedef struct pmlp_check {
    int peak;            /* most micro-batches that any worker holds activations of at once: forward
                            done, weights' gradient not; added up over its stages */
    int slots;           /* fewest slots per edge with which the schedule runs, if asked to find
                            them, else the number given */
    int versions;        /* most weight versions that any stage needs: 1 if synchronous */
    int *peaks;          /* [p], filled for each worker, or NULL */
    int *forward_slots;  /* [S-1], fewest for edge s -> s+1, 0 inside one worker; or NULL */
    int *backward_slots; /* [S-1], fewest for edge s+1 -> s; or NULL */
} pmlp_check;

/* Proves a schedule, or says what is wrong with it. The rules:
   - every F exactly once; every backward exactly once, as B or as I and W; one U per stage, or, in
     an asynchronous schedule, one per stage and update;
   - on its worker: F before I before W, W in ascending order of micro-batches (the order is what
     makes the bits of the gradient), U after every W whose gradient it takes and before the next;
   - with bounded queues between stages and blocking ends, all workers reach the end of their lists.
     Such a pipeline is a Kahn network: whether it deadlocks does not depend on timing, so that one
     replay proves it for all runs. U of a synchronous schedule waits for the last W of every stage;
   - in lists with hand-offs of their own, each stands behind what it sends or before what needs it.
   slots > 0: with that many slots on every edge; 0: finds the fewest. report may be NULL; set its
   pointers to NULL or to arrays of your own. Errors: SCHEDULE or DEADLOCK, with worker, stage,
   micro-batch and op in *error and a sentence that names the action and what it lacks; MEMORY. */
PMLP_API pmlp_result pmlp_schedule_check(const pmlp_schedule *schedule, int slots,
                                         pmlp_check *report, pmlp_error *error);

/* How messages travel between workers, for pmlp_schedule_replay(). */
typedef enum pmlp_transport {
    PMLP_TRANSPORT_DEFAULT,    /* slots */
    PMLP_TRANSPORT_SLOTS,      /* a queue of so many messages for each boundary and direction */
    PMLP_TRANSPORT_UNBOUNDED,  /* the same without a limit */
    PMLP_TRANSPORT_RENDEZVOUS, /* no buffer: a SEND ends when the receiver takes it, one hand-off
                                  after the other (MPI_Ssend, NCCL without groups) */
    PMLP_TRANSPORT_GROUPED,    /* no buffer, but hand-offs that stand together in a list begin
                                  together and end together (ncclGroupStart, batch_isend_irecv) */
    PMLP_TRANSPORT_PAIR,       /* one unlimited queue for each pair of workers and direction, which
                                  all their boundaries share */
    PMLP_TRANSPORT_COUNT
} pmlp_transport;

/* "slots", "unbounded", "rendezvous", "grouped", "pair"; "?" for a value that is none. */
PMLP_API const char *pmlp_transport_name(pmlp_transport transport);

/* Runs the lists over such a transport without computing anything: does everybody reach the end? A
   schedule that is not lowered is taken as one would write the program by hand: each RECV right
   before the action that needs it, each SEND right behind the one that it comes from, B in one
   piece. slots is for PMLP_TRANSPORT_SLOTS, 0 meaning 1. done, if not NULL, is [workers]: how many
   actions of its list each worker finished, whatever the result. Errors: DEADLOCK, with the circle
   of who waits for whom; SCHEDULE if the rules are broken or the messages of a queue come in
   another order than they are taken; ARGUMENT; MEMORY. */
PMLP_API pmlp_result pmlp_schedule_replay(const pmlp_schedule *schedule, pmlp_transport transport,
                                          int slots, int *done, pmlp_error *error);

typedef struct pmlp_simulation {
    double makespan; /* from the first begin to the last end */
    double busiest;  /* the largest sum of costs on one worker: no schedule can be shorter */
    double bubble;   /* idle share of all workers, 0 .. 1 */
    double peak;     /* most that any worker holds at once, in the unit of costs->held */
} pmlp_simulation;

/* Times a schedule under given costs with unbounded edges. begin, if not NULL, is [sum of all list
   lengths], worker by worker: when each action begins. costs may be NULL. Time and memory grow with
   the number of actions. That the rules hold is for pmlp_schedule_check() to say. Errors: ARGUMENT
   if a cost is not a finite number >= 0; as the checker's if the schedule cannot finish; MEMORY. */
PMLP_API pmlp_result pmlp_schedule_simulate(const pmlp_schedule *schedule, const pmlp_costs *costs,
                                            double *begin, pmlp_simulation *simulation,
                                            pmlp_error *error);

/* The same, drawn as text: pmlp_timeline_draw() of pmlp_schedule_timeline(). costs may be NULL.
   Errors: as the simulator's. */
PMLP_API pmlp_result pmlp_schedule_draw(const pmlp_schedule *schedule, const pmlp_costs *costs,
                                        double unit, char *buffer, size_t size, size_t *length,
                                        pmlp_error *error);

/*============================================================================================*/
/* >>timeline: what ran when, simulated or measured                                           */
/*                                                                                            */
/* pmlp_schedule_timeline() computes one, pmlp_trainer_timeline() measured it; whoever reads  */
/* or draws timelines cannot tell the difference. Times are in the unit of the costs, or in   */
/* seconds if measured; the first action of all begins at 0.                                  */
/*============================================================================================*/

typedef struct pmlp_timeline pmlp_timeline;

/* One action as it ran. */
typedef struct pmlp_span {
    pmlp_op op;
    int stage, microbatch; /* as in the schedule */
    int count;             /* micro-batches microbatch .. microbatch + count - 1 at once: W that was
                              put off; else 1 */
    bool ahead;            /* F: only the part that needs nothing from the stage below */
    double begin, end;
} pmlp_span;

/* Where one worker's time went. busy + fill + waiting + transfer + drain = the makespan. */
typedef struct pmlp_worker_time {
    double busy;          /* = f + i + w + b + u */
    double f, i, w, b, u; /* b: backwards that were not split in I and W */
    double fill;          /* before its first action */
    double waiting;       /* between actions, for a worker that was still computing what it needs */
    double transfer;      /* between actions, for what was computed already but not yet there; of a
                             measured run also what the worker itself spent between actions */
    double drain;         /* after its last I, W or B, less its updates: others still computed */
    int waits_for;        /* the worker it waited for longest; -1 if it never waited */
    double peak;          /* most that it held at once, in the unit of costs->held */
} pmlp_worker_time;

/* The simulated timeline of a schedule; of a lowered one, too. costs may be NULL. Errors: as the
   simulator's. */
PMLP_API pmlp_result pmlp_schedule_timeline(const pmlp_schedule *schedule, const pmlp_costs *costs,
                                            pmlp_timeline **timeline, pmlp_error *error);
/* NULL is allowed. */
PMLP_API void pmlp_timeline_destroy(pmlp_timeline *timeline);
PMLP_API int pmlp_timeline_workers(const pmlp_timeline *timeline);
PMLP_API double pmlp_timeline_makespan(const pmlp_timeline *timeline);
/* The worker's spans in order of time; NULL and *count 0 if there is no such worker. */
PMLP_API const pmlp_span *pmlp_timeline_spans(const pmlp_timeline *timeline, int worker,
                                              int *count);
/* Errors: ARGUMENT, MEMORY. */
PMLP_API pmlp_result pmlp_timeline_worker(const pmlp_timeline *timeline, int worker,
                                          pmlp_worker_time *time);

/* Draws a timeline as text, one row per worker, time to the right; a cell `F3` is the forward of
   micro-batch 3, `==` continues an action, `..` is idle; stages are named only where a worker has
   several (`1F3`). `unit` is the time that one cell stands for, 0 means 1. Buffer as in
   pmlp_schedule_print(). Errors: ARGUMENT (more than a million cells, too). */
PMLP_API pmlp_result pmlp_timeline_draw(const pmlp_timeline *timeline, double unit, char *buffer,
                                        size_t size, size_t *length, pmlp_error *error);

/* How pictures are labelled. All-zero means the defaults; NULL does, too. */
typedef struct pmlp_picture {
    const char *title;              /* UTF-8; default none */
    const char *name, *against_name;/* of the timeline and the one it is held against; default
                                       "measured" and "simulated" if there are two, else "" */
    const char *unit;               /* of what is printed; default "" */
    double scale;                   /* printed times are times * scale, > 0; default 1 */
    int width;                      /* of the picture in pixels, 640 .. 100000; default 1200 */
} pmlp_picture;

/* A self-contained SVG: a row per worker, a colour per op (told apart without colour vision, too),
   micro-batch numbers, idle time hatched, each worker's shares and the reasons beside it; light or
   dark as the reader's system is. With `against` not NULL, each worker has two rows on one scale of
   time, and a table says where the difference between the two makespans went. Buffer as in
   pmlp_schedule_print(). Errors: ARGUMENT (also: `against` has other workers), MEMORY. */
PMLP_API pmlp_result pmlp_timeline_svg(const pmlp_timeline *timeline, const pmlp_timeline *against,
                                       const pmlp_picture *picture, char *buffer, size_t size,
                                       size_t *length, pmlp_error *error);
/* A trace in Chrome's JSON form, for ui.perfetto.dev: a process per timeline, a thread per worker,
   arrows for hand-offs. scale turns times into what the viewer takes for milliseconds: 1000 for
   measured ones, 1 for unit costs. Buffer as in pmlp_schedule_print(). Errors: as
   pmlp_timeline_svg(). */
PMLP_API pmlp_result pmlp_timeline_trace(const pmlp_timeline *timeline,
                                         const pmlp_timeline *against, const pmlp_picture *picture,
                                         char *buffer, size_t size, size_t *length,
                                         pmlp_error *error);
/* The same into files. Errors: FILE, too. */
PMLP_API pmlp_result pmlp_timeline_write_svg(const pmlp_timeline *timeline,
                                             const pmlp_timeline *against,
                                             const pmlp_picture *picture, const char *path,
                                             pmlp_error *error);
PMLP_API pmlp_result pmlp_timeline_write_trace(const pmlp_timeline *timeline,
                                               const pmlp_timeline *against,
                                               const pmlp_picture *picture, const char *path,
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
typedef struct pmlp_group pmlp_group;

/* What a step, an epoch or an evaluation did. */
typedef struct pmlp_stats {
    uint64_t step;             /* steps of this training so far, also before a load */
    uint64_t epoch;            /* epochs of this training completed so far */
    size_t steps, rows;        /* of this call so far; of an epoch that was interrupted, with what
                                  the earlier calls did of it */
    size_t total_rows;         /* what rows will be at the end of this call */
    double loss;               /* mean over these rows */
    double accuracy;           /* share of rows whose largest output is the label's, or -1 */
    double seconds;            /* of this call */
    double samples_per_second; /* rows of this call / seconds */
    double gradient_norm;      /* of the last step, before clipping; 0 if nobody asked for it */
    size_t skipped;            /* of `steps`, those that changed nothing: desc.bad_numbers. Their
                                  rows are not in the mean loss */
    int workers;
    const double *idle;        /* [workers], share of `seconds` that each one's thread spent waiting
                                  for others (a device may be idle meanwhile or not); of several
                                  replicas, those of the first; until the next call with this
                                  trainer */
} pmlp_stats;

/* What becomes of a step whose loss is infinite or not a number, or whose gradient is, if its norm
   is computed (clip_norm, gradient_norm). A synchronous step is judged before it updates
   anything. */
typedef enum pmlp_bad_numbers {
    PMLP_BAD_NUMBERS_DEFAULT, /* stop */
    PMLP_BAD_NUMBERS_STOP,    /* the call fails with PMLP_ERROR_NUMBER and says in which step and
                                 layer; the weights are those before the step, or, with an
                                 asynchronous schedule, spoilt. The trainer can be used on */
    PMLP_BAD_NUMBERS_SKIP,    /* the step changes nothing, training goes on, stats->skipped tells;
                                 synchronous schedules only */
    PMLP_BAD_NUMBERS_COUNT
} pmlp_bad_numbers;

/* Called by pmlp_trainer_epoch() after each step, on the thread that called it. Returning false
   interrupts the epoch: PMLP_ERROR_CANCELLED; the trainer stays usable, and the next
   pmlp_trainer_epoch() goes on where this one stopped. It may call pmlp_trainer_sync(),
   pmlp_trainer_save(), pmlp_trainer_set_learning_rate() and queries, no other function of the same
   trainer; why one of these failed must be read here, before the epoch has its own error. With
   ranks, those that have one are asked, and all end if one says so; what all must do alike, such as
   a sync, wants one on each. */
typedef bool (*pmlp_progress_fn)(const pmlp_stats *stats, void *user);

/* A boundary between two stages lies before `column` of `layer`. Column 0: between whole layers.
   Only layer 0 may be cut inside, at a multiple of PMLP_COLUMN_STEP: the stage below computes its
   outputs 0 .. column-1, the stage above the others, from the same input rows, which it reads
   itself. Nothing is summed twice, so the bits stay equal; and the first layer is often the largest
   by far. */
typedef struct pmlp_cut {
    int layer, column;
} pmlp_cut;

#define PMLP_COLUMN_STEP 16

/* How to train. A field that is 0 or NULL means its default, so that learning_rate, momentum,
   beta1, beta2 and epsilon cannot be 0 here: without momentum take PMLP_SGD; a learning rate of 0
   is for pmlp_trainer_set_learning_rate(). backend, edges and group are not copied, and must
   outlive the trainer. */
typedef struct pmlp_trainer_desc {
    int workers;                   /* p; default 1 */
    int virtual_stages;            /* v, stages per worker; default as in pmlp_schedule_desc */
    int microbatches;              /* m; default 1 for one worker with one stage, else 2 p; may be
                                      less than p if the schedule permits */
    size_t batch;                  /* rows of a batch, the most that a step may have; default 128 */
    pmlp_schedule_kind schedule;   /* default 1F1B */
    const pmlp_schedule *custom;   /* a schedule of your own, synchronous and not lowered, instead
                                      of workers, virtual_stages, microbatches and schedule;
                                      copied */
    const pmlp_costs *costs;       /* auto: what it goes by; default: measured on a copy of the
                                      model, in a few steps on zeros */
    double memory;                 /* auto: most that a worker may hold at once by the schedule as
                                      it is written, in the unit of costs->held, bytes if measured;
                                      the trainer's own buffers hold a batch; default: no limit */
    bool no_stashing;              /* asynchronous schedules: keep one version of the weights, so
                                      that a backward may see others than its forward did */
    const pmlp_cut *cuts;          /* [S - 1]: where stages 1, 2, ... begin; default
                                      pmlp_partition(); copied */
    bool whole_layers;             /* do not cut inside layer 0; always so, but for cuts that you
                                      give, if the back end is not exact */
    const double *layer_costs;     /* [layers]: what pmlp_partition() goes by; copied */
    bool measure_layers;           /* create finds them with pmlp_measure_layers() first, unless
                                      layer_costs or cuts are given. Where the cut lies then depends
                                      on the machine; the bits do not, but those of asynchronous
                                      schedules, where a stage's place decides on its staleness */
    int slots;                     /* per edge between stages; default m, which never blocks a
                                      synchronous schedule */
    size_t w_rows; /* W is put off until so many rows are together, see ON PIPELINES;
                                      1: done where the schedule has it; default 128, or 1 if the
                                      back end is not exact */

    pmlp_optimizer optimizer;      /* default SGD */
    float learning_rate;           /* default 0.1 for SGD, 0.05 with momentum, 0.001 for Adam */
    float momentum;                /* default 0.9 */
    float beta1, beta2, epsilon;   /* Adam; default 0.9, 0.999, 1e-8 */
    float weight_decay;            /* of weights, not of biases; default 0 */
    float clip_norm;               /* longest global gradient allowed; default 0: no clipping */
    pmlp_bad_numbers bad_numbers;  /* what becomes of a step whose loss is not a finite number;
                                      default: it stops the training. A back end that works on by
                                      itself knows the loss only behind the update, unless
                                      gradient_norm is set, as skipping does */

    uint64_t seed;                 /* of the shuffling */
    bool no_shuffle;               /* epochs take the rows in the order given */
    bool no_threads;               /* run all workers' lists on the calling thread */
    bool bind_threads;             /* bind worker i's thread to the i-th core that this process may
                                      use, on Linux and Windows; the calling thread, worker 0's, is
                                      left alone. Only where nobody else needs these cores: a bound
                                      thread waits for its core while another one is free */
    bool gradient_norm;            /* compute it even if clip_norm is 0; asynchronous schedules
                                      never have all of a gradient at once: 0 */
    bool keep_gradients;           /* for pmlp_trainer_gradient(). Otherwise, and if nobody wants
                                      their norm, the last W of a step is done together with U,
                                      which is faster and leaves no gradient behind */
    int trace;                     /* keep what ran when of so many steps, the last ones; default
                                      0: none. See pmlp_trainer_timeline() */

    pmlp_group *group;             /* the other ranks that train this model, see >>group; default:
                                      there are none. Must outlive the trainer */
    int replicas;                  /* R: pipelines side by side, each with its share of a batch's
                                      rows; divides the group's ranks; default 1 */
    bool allreduce;                /* sums of replicas' gradients: each makes its own, then these
                                      are added (pmlp_group.sum). Otherwise the replicas continue
                                      one chain, one after the other, which has the bits of R = 1.
                                      Always so if the back end is not exact */
    double deadline;               /* seconds that a rank waits for another one before it fails;
                                      default 60 */

    const pmlp_backend *backend;   /* default pmlp_cpu_backend() */
    const pmlp_edges *edges;       /* hand-off between stages; default the back end's */
    pmlp_progress_fn progress;     /* default none */
    void *progress_user;
    pmlp_logger logger;            /* default silent */
    pmlp_allocator allocator;      /* default malloc and free */
} pmlp_trainer_desc;

/* Creates a trainer with p - 1 threads (the calling thread of each step is worker 0) or none. The
   trainer owns the model's weights until it is destroyed; the model must outlive it. *trainer is
   NULL on failure. With a group all ranks call this, and get a trainer or an error, all of them;
   what is measured (measure_layers, auto) is measured on rank 0. Errors: ARGUMENT, SHAPE (more
   stages than places to cut), STATE (the model has a trainer), SCHEDULE or DEADLOCK (the
   checker's), MEMORY, THREAD, BACKEND, RANK. */
PMLP_API pmlp_result pmlp_trainer_create(pmlp_model *model, const pmlp_trainer_desc *desc,
                                         pmlp_trainer **trainer, pmlp_error *error);
/* Joins the threads, writes the weights back to the model, frees everything. NULL is allowed. If
   other ranks have stages that this one lacks, and a step has been done since the last sync, all
   ranks have to call this, for then each gets all weights. If something has failed, or a rank does
   not come within the deadline, the model says that its weights are lost; nobody is waited for
   longer. */
PMLP_API void pmlp_trainer_destroy(pmlp_trainer *trainer);

/* The calls below may come from any thread, one at a time: a second call while one runs returns
   PMLP_ERROR_STATE and changes nothing. Every other failure has its sentence in
   pmlp_trainer_error(). Bad arguments and data are found before anything is computed: the trainer
   stays usable, as if the call had not been made. A failure inside the pipeline (back end, edge,
   memory) makes the trainer refuse further work with PMLP_ERROR_STATE; if it happened before the
   updates began, the weights are those of the last complete step, which sync and destroy still
   read; later, they are lost, and the model says so. stats may be NULL everywhere.

   Errors of step, epoch and eval: ARGUMENT and SHAPE (what was passed), DATA (a label that is no
   class), NUMBER (not of eval; see bad_numbers), BACKEND, MEMORY, RANK, STATE; of epoch also
   CANCELLED. Of sync: STATE (the weights are lost), BACKEND, RANK.

   With a group, step, epoch, eval, sync and gradient are calls that all ranks make, each with the
   same arguments. A bad argument of one, or arguments that differ, fail on all with
   PMLP_ERROR_RANK, and all trainers stay usable; every other failure of one ends all. What a rank
   cannot read of the others after a failure is PMLP_ERROR_STATE. */

/* One optimizer step on the mean loss of one batch, 1 <= batch->rows <= desc.batch. */
PMLP_API pmlp_result pmlp_trainer_step(pmlp_trainer *trainer, const pmlp_data *batch,
                                       pmlp_stats *stats);
/* One pass over the data in batches of desc.batch rows, the last one smaller if need be, in an
   order drawn from desc.seed and the number of the epoch; or the rest of a pass that was
   interrupted, which wants the same data. With an asynchronous schedule the pipeline does not drain
   between batches, but every 65,536 rows, when the progress callback is called. Errors beside the
   above: SHAPE if the data has not as many rows as that which the epoch began with. */
PMLP_API pmlp_result pmlp_trainer_epoch(pmlp_trainer *trainer, const pmlp_data *data,
                                        pmlp_stats *stats);
/* Forgets how far an epoch that was interrupted has come: the next pmlp_trainer_epoch() begins it
   anew. The steps that it did stay done. */
PMLP_API pmlp_result pmlp_trainer_restart_epoch(pmlp_trainer *trainer);
/* Loss and accuracy on the data with the present weights; changes nothing. Runs through the
   pipeline. The loss is a NaN if one row's is. */
PMLP_API pmlp_result pmlp_trainer_eval(pmlp_trainer *trainer, const pmlp_data *data,
                                       pmlp_stats *stats);
/* Copies the present weights into the model, so that it can be queried, saved or predicted with. */
PMLP_API pmlp_result pmlp_trainer_sync(pmlp_trainer *trainer);
/* From the next step on. Errors: ARGUMENT if not a finite number >= 0; STATE while another call
   runs. */
PMLP_API pmlp_result pmlp_trainer_set_learning_rate(pmlp_trainer *trainer, float learning_rate);
/* The gradient of the last step's mean loss, before clipping: dw [n_out][n_in], db [n_out]; either
   may be NULL. With an asynchronous schedule: what each stage's last update took. Errors: ARGUMENT;
   STATE before the first step, or the first since a load, after one that failed, and without
   desc.keep_gradients. */
PMLP_API pmlp_result pmlp_trainer_gradient(pmlp_trainer *trainer, int layer, float *dw, float *db);

/* The last failure; result is PMLP_OK if there was none yet. A success does not clear it, the next
   failure replaces it: look only when a call has failed. NULL for a NULL trainer. */
PMLP_API const pmlp_error *pmlp_trainer_error(const pmlp_trainer *trainer);
/* The desc with every default resolved; its pointers point into the trainer. */
PMLP_API pmlp_trainer_desc pmlp_trainer_query_desc(const pmlp_trainer *trainer);
/* How far a training has come. */
typedef struct pmlp_position {
    uint64_t step, epoch;    /* done so far, also before a load */
    size_t rows, total_rows; /* of an epoch that was interrupted: done, and of its data; else 0 */
} pmlp_position;

/* From any thread, or the progress callback. Errors: ARGUMENT; STATE while another call runs. */
PMLP_API pmlp_result pmlp_trainer_position(pmlp_trainer *trainer, pmlp_position *position);
/* The schedule that the trainer runs on one batch, before lowering; owned by the trainer. */
PMLP_API const pmlp_schedule *pmlp_trainer_schedule(const pmlp_trainer *trainer);

/* What ran when, measured on the workers' clocks; needs desc.trace > 0. steps > 0: the last so many
   of the steps that are kept, one behind the other; 0: the one whose length is the median of those
   kept. Of an asynchronous epoch, whose steps overlap, the first 4 batches since the pipeline was
   empty count as one step. Destroy it with pmlp_timeline_destroy(); it may outlive the trainer. Of
   workers of other ranks it has nothing. Errors: ARGUMENT; STATE if nothing was traced; MEMORY. */
PMLP_API pmlp_result pmlp_trainer_timeline(pmlp_trainer *trainer, int steps,
                                           pmlp_timeline **timeline);
/* What actions cost in the steps that are kept, in seconds and bytes: medians of each stage's F, I,
   W and U per micro-batch (a U that was done along with a W counts there), of what was done ahead,
   of the time from the end of a producer to the begin of a consumer that waited for it, and the
   sizes of messages and activations; 0 for stages of other ranks. The arrays live in the trainer
   until the next call. Errors: as above. */
PMLP_API pmlp_result pmlp_trainer_costs(pmlp_trainer *trainer, pmlp_costs *costs);

typedef struct pmlp_stage_info {
    int worker;
    int first_layer, layers;
    size_t first_column, columns; /* of its first layer: all, unless that is layer 0, cut inside */
    double cost;                  /* share of the whole network's cost, 0 .. 1: of layer_costs, or
                                     of its multiply-adds */
    int versions;                 /* of its weights that are kept: 1 unless asynchronous */
    double staleness;             /* updates of this stage between the weights that a micro-batch's
                                     forward read and those that its gradient changed: mean of all
                                     micro-batches so far, measured; 0 if synchronous */
    int most_stale;               /* the largest of them */
    double torn;                  /* share of the micro-batches whose backward saw other weights
                                     than their forward: 0 with weight stashing */
} pmlp_stage_info;

/* What a stage consists of, and what was measured of it; not while a call of the trainer runs on
   another thread. Errors: ARGUMENT. */
PMLP_API pmlp_result pmlp_trainer_stage(const pmlp_trainer *trainer, int stage,
                                        pmlp_stage_info *info);

/* Cuts a model into `stages` parts such that the costliest is as cheap as possible, or nearly, if
   that saves a cut inside layer 0, which costs what 4 of its outputs do. layer_costs
   [layers]: what all operations of a layer cost, in any unit, above 0; NULL: multiply-adds of F, I
   and W (the first layer's I is never needed). Boundaries lie between layers and, unless
   whole_layers, inside layer 0. cuts is [stages - 1]: where stages 1, 2, ... begin. *balance, which
   may be NULL, becomes mean / largest cost of a stage: the bound that the cut sets on the use of
   `stages` equal workers. Errors: ARGUMENT; SHAPE if there are fewer places to cut than that;
   MEMORY. */
PMLP_API pmlp_result pmlp_partition(const pmlp_model *model, int stages, bool whole_layers,
                                    const double *layer_costs, pmlp_cut *cuts, double *balance,
                                    pmlp_error *error);
/* Measures what each layer costs on desc's back end: costs [layers], seconds of one batch, cut into
   micro-batches as desc says, through F, I, W and U of that layer, on zeros; medians of a few. Each
   layer is measured alone first; then the stages that desc makes of them, since layers that share a
   core's caches take longer. Takes about twenty steps' time. Errors: those of a trainer, and
   BACKEND. */
PMLP_API pmlp_result pmlp_measure_layers(const pmlp_model *model, const pmlp_trainer_desc *desc,
                                         double *costs, pmlp_error *error);

typedef struct pmlp_verify_report {
    bool identical;
    int steps;           /* steps trained */
    int at_step;         /* the one, from 1, in which the first difference showed; 0: none did */
    const char *what;    /* "loss", "gradient norm", "weight", "bias"; "" if identical */
    int layer;           /* of the first difference; -1 for the loss and the norm */
    size_t row, column;  /* of it: w[row][column], b[row] */
    double pipeline, serial; /* the two values */
    uint64_t hash;       /* the weights word of the pipeline's weights */
    double staleness;    /* the largest of the stages' mean staleness: 0 if synchronous */
    char text[512];      /* all of it in a sentence; of an asynchronous schedule also the measured
                            staleness of each stage */
} pmlp_verify_report;

/* The promise, tested on your own network: trains two copies of the model from its present weights
   for `steps` steps, one as desc says, one serially (one worker, the whole batch at once or, unless
   the back end is exact, the same micro-batches, no threads, same optimizer and back end), and
   compares every bit of losses, gradient norm, weights and biases after each step. Takes batches in
   order from data, beginning again at its end. The model itself is not changed. Stops at the first
   difference; with an asynchronous schedule, which is bound to differ, it goes on to the last step,
   to measure the staleness. Returns PMLP_OK when the comparison was made: see report->identical.
   With a group all ranks call this, and each trains serially by itself. Errors: those of the
   trainer. */
PMLP_API pmlp_result pmlp_verify(const pmlp_model *model, const pmlp_trainer_desc *desc,
                                 const pmlp_data *data, int steps, pmlp_verify_report *report,
                                 pmlp_error *error);

/* What bounds the speedup of a network on some workers, against one worker that does the same
   arithmetic. Each bound is a speedup; the ideal is the number of workers. */
typedef struct pmlp_ceiling_report {
    int workers;
    double balance;      /* if only the cut counted: all work / that of the busiest worker */
    double whole_layers; /* the same for the best cut between whole layers; 0 if there is none */
    double fill;         /* if only the schedule counted: equal stages, free hand-offs */
    double schedule;     /* cut and schedule together, free hand-offs */
    double speedup;      /* with hand-offs: the ceiling */
    const char *binds;   /* what costs most: "balance", "fill and drain", "hand-offs", or "nothing"
                            if less than 1 % is lost. Static storage */
    char advice[320];    /* what to change, in a sentence */
} pmlp_ceiling_report;

/* costs [S] may be measured ones, pmlp_trainer_costs(); NULL: multiply-adds are counted and
   hand-offs are free. The schedule is timed as it runs, pmlp_schedule_put_off().
   Of an asynchronous one 16 batches are looked at. No other rank is asked. Errors: ARGUMENT, SHAPE,
   SCHEDULE, DEADLOCK, MEMORY. */
PMLP_API pmlp_result pmlp_ceiling(const pmlp_model *model, const pmlp_trainer_desc *desc,
                                  const pmlp_costs *costs, pmlp_ceiling_report *report,
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
/* >>files: models and checkpoints                                                            */
/*                                                                                            */
/* All in the format safetensors, see ON FILES. Saving replaces a file or creates it, whole   */
/* or not at all; the path's folder must exist and take a temporary file beside it. A link is */
/* replaced, not what it points to; what is no regular file is refused. Loading reads a whole */
/* file and finds everything that is wrong with it before it changes anything. Every sentence */
/* names the file.                                                                            */
/*============================================================================================*/

/* Weights, biases, activations and loss. Errors: ARGUMENT; STATE as for pmlp_model_params();
   MEMORY; FILE, and then what was there before is still there. */
PMLP_API pmlp_result pmlp_model_save(const pmlp_model *model, const char *path, pmlp_error *error);
/* Creates the model that a file holds: sizes by the tensors' shapes, activations and loss by its
   metadata ("activations": "relu,linear", "loss": "xent"), else the defaults. Also from what
   pmlp_trainer_save() wrote, of which it takes the model. allocator may be NULL. *model is NULL on
   failure. Errors: ARGUMENT; FILE if it cannot be read; PARSE if it is not what it should be; SHAPE
   if its layers do not fit together; UNSUPPORTED if its numbers are of another type than F32, F64,
   F16 or BF16, of which the latter three are converted; MEMORY. */
PMLP_API pmlp_result pmlp_model_load(const char *path, const pmlp_allocator *allocator,
                                     pmlp_model **model, pmlp_error *error);
/* The same from memory, at any alignment. Errors: ARGUMENT, PARSE, SHAPE, UNSUPPORTED, MEMORY. */
PMLP_API pmlp_result pmlp_model_parse(const void *bytes, size_t size,
                                      const pmlp_allocator *allocator, pmlp_model **model,
                                      pmlp_error *error);
/* Only the weights and biases, into a model that no trainer has; its activations and loss stay.
   Errors: those of pmlp_model_load(); SHAPE also if the sizes are not the model's; STATE if a
   trainer has the model. */
PMLP_API pmlp_result pmlp_model_load_weights(pmlp_model *model, const char *path,
                                             pmlp_error *error);

/* Everything that it takes to go on: the model, the optimizer's moments, steps, epoch and position
   in it, learning rate, and the settings that must be the same. Between calls, or from the progress
   callback, after any step; also after a failure that left the weights as they were. All ranks of a
   group call it; rank 0 writes. Errors:
   ARGUMENT; STATE if the weights are lost; MEMORY; FILE, and then what was there before is still
   there; the back end's. */
PMLP_API pmlp_result pmlp_trainer_save(pmlp_trainer *trainer, const char *path);
/* Goes on with a training: all of the above, and the weights into the trainer's model, too. The
   trainer keeps its own workers, stages, micro-batches, schedule, back end and callbacks. Sizes,
   activations, loss, batch, optimizer, its numbers, clip_norm, seed and no_shuffle must be those of
   the training that was saved; what differs is refused with both values. The learning rate becomes
   the file's. All ranks of a group call it; rank 0 reads. Not from the progress callback. If the
   back end fails amid writing, the trainer refuses further work. Errors: ARGUMENT; FILE, PARSE,
   SHAPE, UNSUPPORTED as for pmlp_model_load(); ARGUMENT or SHAPE for what differs; PARSE if the
   file holds a model only; MEMORY; the back end's. */
PMLP_API pmlp_result pmlp_trainer_load(pmlp_trainer *trainer, const char *path);

/*============================================================================================*/
/* >>backend: how to plug in other hardware                                                   */
/*                                                                                            */
/* A back end computes a layer's operations; it knows nothing of schedules. The contract:     */
/*  - open() is called once per worker; every other call for that context comes from one      */
/*    thread at a time: the worker's own while the trainer is created and during a step, the  */
/*    thread that calls the trainer between steps and at the end.                             */
/*  - "buffer" pointers come from the context's own alloc() and may be device memory; pointers*/
/*    marked host are ordinary memory.                                                        */
/*  - work may be asynchronous, in the order of the calls; synchronize() waits for it. Host   */
/*    results (row_loss, row_hit, squares) are read after the next synchronize().             */
/*  - if the edges are `shared`, a boundary's buffer comes from the context below (x) or that */
/*    below (dz), and the context above is given it, too.                                     */
/*  - the last backward_weight of a step may come as a part of update, see pmlp_update_args.  */
/*  - backward_weight, or that part, has 0 rows if the first micro-batch is empty, and then,  */
/*    beginning anew, makes the gradient 0; no other operation is called without rows.        */
/*  - rows of activations and gradients lie row_floats() apart; a micro-batch is a range of   */
/*    rows, and a call may be given the rows of several neighbouring micro-batches.           */
/*  - a layer keeps `versions` versions of its weights, numbered from 0; forward and           */
/*    backward_input are told which to read, update which to read and which to write. write   */
/*    and read of the parameters mean the one that was last written.                          */
/*  - a back end that is `exact` computes each element's sum alike however rows are cut into  */
/*    calls: backward_weight continues its sums in row order. Only then has a pipeline the    */
/*    bits of whole batches; if not, still those of one worker with the same micro-batches.   */
/*  - functions return PMLP_OK or an error, never PMLP_BUSY; after an error the trainer stops */
/*    and names stage and op. No entry may be NULL but user, edges, stamp and explain.        */
/*  - the table is not copied: it must outlive the trainer.                                   */
/*============================================================================================*/

#define PMLP_BACKEND_ABI 5

typedef struct pmlp_backend_desc {
    int worker, workers;      /* of this rank's, from 0 */
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
    int versions;               /* of the weights, kept at once: 1 unless asynchronous */
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
    int from, to;         /* versions of the weights: to = from - what the gradient says; equal if
                             there is only one */
    /* The step's last backward_weight, if it was kept for here, to be done first; a back end may
       fuse the two. No rows and not anew: there is none. */
    size_t rows;
    const float *x, *dz;  /* buffers */
    bool anew;            /* dW and db begin with it */
} pmlp_update_args;

struct pmlp_backend {
    uint32_t abi;  /* PMLP_BACKEND_ABI */
    uint32_t size; /* sizeof(pmlp_backend) */
    const char *name;
    const void *user;
    const pmlp_edges *edges; /* hand-off between contexts of this back end in one process; NULL:
                                that of threads, for work that is done when the call returns */
    bool exact;              /* no sum depends on how rows and outputs are cut into calls. If one
                                may, a trainer does each W where the schedule has it (desc.w_rows 1)
                                and cuts between whole layers, if left to itself: then the same
                                micro-batches give the same bits */

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
       ignored by write and read as 0; what the gradients are behind an update that was given rows
       is up to the back end. */
    pmlp_result (*write)(void *context, void *layer, pmlp_tensor tensor, const float *w,
                         const float *b);
    pmlp_result (*read)(void *context, void *layer, pmlp_tensor tensor, float *w, float *b);

    /* x [rows][row_floats(n, linear)] buffer = rows index[0..rows-1] (NULL: first, first+1, ...) of
       the host's data->x [..][n]. */
    pmlp_result (*input)(void *context, size_t rows, size_t n, const pmlp_data *data,
                         const uint32_t *index, size_t first, float *x);
    /* y = f(x W^T + b) */
    pmlp_result (*forward)(void *context, void *layer, int version, size_t rows, const float *x,
                           float *y);
    /* dz_below = (dz W) * f'(x), x being the outputs of the layer below */
    pmlp_result (*backward_input)(void *context, void *layer, int version, size_t rows,
                                  const float *dz, const float *x, float *dz_below);
    /* dW (+)= dz^T x, db (+)= column sums of dz; begins anew unless accumulate */
    pmlp_result (*backward_weight)(void *context, void *layer, size_t rows, const float *x,
                                   const float *dz, bool accumulate);
    pmlp_result (*loss)(void *context, void *layer, const pmlp_loss_args *args);
    /* host squares [n_out]: sum over the row's dW and db, squared, in double, in ascending order */
    pmlp_result (*gradient_squares)(void *context, void *layer, double *squares);
    pmlp_result (*update)(void *context, void *layer, const pmlp_update_args *args);
    /* Where the layer's dW and db are: *floats floats in one piece, in the back end's memory and
       its own order, which is the same wherever the layer's desc is. For sums over replicas. */
    pmlp_result (*gradient)(void *context, void *layer, float **data, size_t *floats);
    pmlp_result (*synchronize)(void *context);

    /* May be NULL if work is done when a call returns. *seconds becomes, by the next synchronize(),
       the time at which all work given so far was done; on one clock for all contexts. */
    pmlp_result (*stamp)(void *context, double *seconds);
    /* May be NULL: a sentence, without its period, on why this context failed last. */
    const char *(*explain)(void *context);
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
   and unchanged until the message has been received, and longer. A message of an empty micro-batch
   has 0 bytes.
   connect(), reset() and disconnect() are called by the thread that calls the trainer; no
   wake() after disconnect(). The table is not copied: it must outlive the trainer. */

#  define PMLP_EDGES_ABI 3

typedef struct pmlp_edge_desc {
    int from_stage, to_stage, from_worker, to_worker;
    int from_rank, to_rank;            /* 0 and 0 without a group */
    int channel;                       /* a number that no other edge of the group has, from 0; the
                                          same at both ends */
    bool gradient;                     /* to_stage == from_stage - 1; or, between replicas, to_stage
                                          == from_stage and a message is a layer's dW and db */
    int slots;
    double seconds;                    /* a connect() that waits for another rank gives up then */
    size_t row_bytes;                  /* of one row of the message */
    size_t max_rows;                   /* rows of the largest message */
    void *from_context, *to_context;   /* of the back end; NULL at another rank */
    void (*wake)(void *worker);
    void *from_wake, *to_wake;         /* arguments for wake: the sender's and the receiver's; NULL
                                          at another rank */
    pmlp_allocator allocator;
} pmlp_edge_desc;

struct pmlp_edges {
    uint32_t abi;  /* PMLP_EDGES_ABI */
    uint32_t size; /* sizeof(pmlp_edges) */
    const char *name;
    const void *user;
    bool shared;   /* both ends see one buffer: the same pointer, and nothing is copied */
    pmlp_transport transport; /* what the trainer has to reckon with: SLOTS (default), or
                                 RENDEZVOUS, which makes it lower the schedule in one order of all
                                 hand-offs */
    pmlp_result (*connect)(const pmlp_edges *self, const pmlp_edge_desc *desc, void **edge,
                           pmlp_error *error);
    void (*disconnect)(void *edge);
    pmlp_result (*reset)(void *edge); /* before each pass; the ends of this rank are at rest */
    pmlp_result (*send)(void *edge, int microbatch, const void *data, size_t bytes);
    pmlp_result (*receive)(void *edge, int microbatch, void *data, size_t bytes);
};

/* Between threads of one process: the pointer is handed over, nothing is copied. Static storage. */
PMLP_API const pmlp_edges *pmlp_thread_edges(void);

/*============================================================================================*/
/* >>group: several ranks, one training                                                       */
/*                                                                                            */
/* A rank is a trainer that has some of the workers: a process, on this machine or another,   */
/* or a thread. All ranks create the same model and a trainer with the same desc but for the  */
/* group's rank, and make the same calls with the same data, in the same order; each gets the */
/* same losses and, after pmlp_trainer_sync(), the same weights. What differs between ranks   */
/* is refused, with both values.                                                              */
/*                                                                                            */
/* With n = ranks / replicas, rank r belongs to replica r / n and has the workers             */
/* [i p / n, (i + 1) p / n) of its pipeline, i = r % n. Replica j trains on its own R-th of   */
/* the rows of each batch, in order.                                                          */
/*                                                                                            */
/* The table is the user's or pipemlp_cuda.cu's; it serves one trainer at a time. Contract:   */
/*  - gather and broadcast are collective: each rank calls them in the same order, one call   */
/*    at a time, from any of its threads. Memory is the host's. They block, no longer than    */
/*    `seconds`, and fail with PMLP_ERROR_RANK then, or as soon as a rank has aborted or is   */
/*    known to be gone.                                                                       */
/*  - sum adds up, in place, the back end's memory of all replicas of one worker, in an order */
/*    that is the same each time, and leaves the same bits everywhere. Replicas call it in    */
/*    the same order for each worker; those of different workers may call at the same time.   */
/*    It is called once with 0 floats when a trainer is created, to connect. May be NULL:     */
/*    then there is no desc.allreduce. Work may go on when it returns, as a back end's does.  */
/*  - edges connect workers of different ranks: connect() is called at each of the two, in    */
/*    the same order everywhere, with the other end's context NULL, and may wait for it. A    */
/*    message has the size at both ends that the receiver asks for.                           */
/*  - abort says that this rank has failed: whoever waits for it fails soon, with its number  */
/*    and, if that can be had, `why`. Called at most once, from any thread; collectives and   */
/*    edges then fail here, too.                                                              */
/*  - explain: a sentence, without its period, on why a call failed last. NULL: none.         */
/*============================================================================================*/

#define PMLP_GROUP_ABI 2

struct pmlp_group {
    uint32_t abi;  /* PMLP_GROUP_ABI */
    uint32_t size; /* sizeof(pmlp_group) */
    const char *name;
    int rank, ranks; /* this one, of so many */
    void *context;
    bool host; /* edges and sum are for the host's memory and work that is done: no back end that
                  has edges of its own */
    const pmlp_edges *edges;
    /* all [ranks][bytes]: what each rank has in `mine` */
    pmlp_result (*gather)(void *context, const void *mine, size_t bytes, void *all,
                          double seconds);
    pmlp_result (*broadcast)(void *context, int from_rank, void *data, size_t bytes,
                             double seconds);
    pmlp_result (*sum)(void *context, int worker, int replicas, void *backend_context, float *data,
                       size_t floats, double seconds);
    void (*abort)(void *context, const char *why);
    const char *(*explain)(void *context);
};

/* Ranks that are threads of one process, for pipelines side by side in it, and to try things out.
   groups [ranks] become tables, one for each rank, to be used by one thread each; destroy them
   together, behind all trainers: pass the first. allocator may be NULL. They are for back ends that
   work in the host's memory and are done when a call returns. Errors: ARGUMENT, MEMORY. */
PMLP_API pmlp_result pmlp_thread_groups_create(int ranks, const pmlp_allocator *allocator,
                                               pmlp_group *groups, pmlp_error *error);
PMLP_API void pmlp_thread_groups_destroy(pmlp_group *groups);

/*============================================================================================*/
/* >>cuda: the back end of pipemlp_cuda.cu, if that file is in the build                      */
/*                                                                                            */
/*      nvcc main.c pipemlp_cuda.cu -lcublas -lcublasLt -lnccl                                */
/*                                                                                            */
/* and `desc.backend = pmlp_cuda_backend();`. Several stages may share a GPU; with several    */
/* GPUs, neighbouring workers share one or sit on neighbouring ones. Work is queued and the   */
/* host waits for it only at the end of a step; with one worker, one micro-batch and the      */
/* schedule PIPEDREAM, which is serial training then, not even there. What is promised: the   */
/* bits of one GPU with the same micro-batches, on the same model of GPU and the same         */
/* versions of the libraries; with the teaching product also those of whole batches.          */
/*                                                                                            */
/* NCCL (2.18 or newer) is in the build if nccl.h is found and PMLP_NO_NCCL is not defined;   */
/* without it leave out -lnccl: everything within one process works as before. With it, GPUs  */
/* of one process may hand over by NCCL, see `handoff`, and processes, one for each GPU or    */
/* for some, on this machine or several, train together:                                      */
/*                                                                                            */
/*      pmlp_launch launch;                                                                   */
/*      pmlp_cuda_options options = {0};                                                      */
/*      pmlp_group group;                                                                     */
/*      pmlp_backend backend;                                                                 */
/*      if (pmlp_launch_from_environment(&launch, &error) != PMLP_OK ||                       */
/*          pmlp_nccl_group_create(&launch, &options, NULL, &group, &backend, &error))        */
/*          return puts(error.text), 1;                                                       */
/*      desc.group = &group;                                                                  */
/*      desc.backend = &backend;                                                              */
/*      ... create, train and destroy the trainer ...                                         */
/*      pmlp_nccl_group_destroy(&group);                                                      */
/*                                                                                            */
/* Rank 0 listens on a TCP port, and the others come to it. Over these connections, which     */
/* stay, a rank that fails tells the others why, and a process that dies is noticed at once;  */
/* one that stands still, or a machine that is gone, when `seconds` are over. Then            */
/* all communicators are aborted, each call of the trainer fails with PMLP_ERROR_RANK and a   */
/* sentence that names the rank, and trainer and group can be destroyed. The connections are  */
/* neither encrypted nor authenticated: they belong into a network that one trusts.           */
/*============================================================================================*/

typedef enum pmlp_cuda_math {
    PMLP_CUDA_FP32, /* default */
    PMLP_CUDA_TF32, /* products of numbers rounded to 10 bits behind the point, sums in fp32 */
    PMLP_CUDA_BF16, /* activations and their gradients in bf16; weights, their gradients, sums and
                       optimizer in fp32 */
    PMLP_CUDA_MATH_COUNT
} pmlp_cuda_math;

typedef enum pmlp_cuda_gemm {
    PMLP_CUDA_GEMM_FUSED,    /* cuBLASLt, with bias and ReLU where it offers that; default */
    PMLP_CUDA_GEMM_PLAIN,    /* cuBLAS, everything else in kernels of our own */
    PMLP_CUDA_GEMM_TEACHING, /* a product of our own, to be read; sums in the order of the CPU's;
                                with TF32 it computes in fp32 */
    PMLP_CUDA_GEMM_COUNT
} pmlp_cuda_gemm;

/* How workers of one process on different GPUs hand over. Workers on one GPU need only an event,
   and processes always use NCCL. */
typedef enum pmlp_cuda_handoff {
    PMLP_CUDA_COPIES, /* copies from GPU to GPU; default */
    PMLP_CUDA_NCCL,   /* NCCL: a communicator and a stream for each boundary and direction */
    PMLP_CUDA_HANDOFF_COUNT
} pmlp_cuda_handoff;

typedef struct pmlp_cuda_options {
    pmlp_cuda_math math;
    pmlp_cuda_gemm gemm;
    const int *devices;  /* [device_count]: which GPUs, in the order of the stages; NULL: all that
                            there are, from 0. For pmlp_nccl_group_create(): those of this rank;
                            NULL: the one of number local_rank, modulo how many there are */
    int device_count;
    bool no_graphs;      /* issue each kernel by itself, not what was recorded of earlier steps */
    pmlp_cuda_handoff handoff;
} pmlp_cuda_options;

/* With options that are all zero. Static storage. A machine without a GPU or a driver is told so by
   pmlp_trainer_create(): UNSUPPORTED, with a sentence. A call may change the current CUDA device of
   the calling thread. The first one puts CUDA_DEVICE_MAX_CONNECTIONS=32 and NCCL_RUNTIME_CONNECT=0
   into the environment, unless they are there: make it before the process uses CUDA. */
extern const pmlp_backend *pmlp_cuda_backend(void);
/* Makes a table with these options, which must outlive it, as must the table the trainer. */
extern void pmlp_cuda_backend_with(const pmlp_cuda_options *options, pmlp_backend *table);

/* What a process must know to find the others. */
typedef struct pmlp_launch {
    int rank, ranks;   /* this one, from 0, of so many; 0 ranks means 1 */
    int local_rank;    /* among the ranks of this machine, from 0: chooses its GPU */
    char address[256]; /* of rank 0, a name or number; default 127.0.0.1 */
    int port;          /* on which rank 0 listens; default 29517 */
    double seconds;    /* longest wait for another rank: to meet, for an edge, for a message;
                          default 60 */
    const void *id;    /* an ncclUniqueId that all ranks have been given otherwise, by MPI_Bcast
                          say: then no port is used, and a rank that dies is noticed only by NCCL
                          or when `seconds` are over; default NULL */
} pmlp_launch;

/* Fills in a launch from the environment, or {0 of 1} if nobody has launched several processes. The
   first of these that is there tells rank, ranks and local_rank:
        PMLP_RANK, PMLP_RANKS, PMLP_LOCAL_RANK              set by yourself
        RANK, WORLD_SIZE, LOCAL_RANK                        torchrun
        OMPI_COMM_WORLD_RANK, _SIZE, _LOCAL_RANK            mpirun of Open MPI
        PMI_RANK, PMI_SIZE, MPI_LOCALRANKID                 mpirun of MPICH and Intel MPI
        SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID           srun
   The address is PMLP_ADDRESS, MASTER_ADDR, or the first of srun's machines; on one machine none is
   needed. The port is PMLP_PORT, or MASTER_PORT + 1, as torchrun's own store holds MASTER_PORT.
   PMLP_SECONDS, if there, becomes `seconds`. Call it before threads change the environment.
   Errors: ARGUMENT, with the variable's name and what is wrong with it. */
extern pmlp_result pmlp_launch_from_environment(pmlp_launch *launch, pmlp_error *error);

/* Meets the other ranks, which call it, too, and makes a group and the back end for its trainers,
   whose workers are on the GPUs of options->devices, all of them this rank's, or on GPU local_rank,
   modulo how many there are. options may be NULL, all zero, and is copied; its devices are not.
   NULL for the allocator: malloc. The group has one trainer at a time; both tables must outlive it.
   Sets CUDA_DEVICE_MAX_CONNECTIONS if it is not set.
   Errors: ARGUMENT, MEMORY, THREAD, BACKEND; RANK: another rank did not come in launch->seconds,
   came twice, or counts other ranks; UNSUPPORTED: no NCCL in this build, or no GPU. */
extern pmlp_result pmlp_nccl_group_create(const pmlp_launch *launch,
                                          const pmlp_cuda_options *options,
                                          const pmlp_allocator *allocator, pmlp_group *group,
                                          pmlp_backend *backend, pmlp_error *error);
/* Behind the trainer. A group that was not created, all zero, is left alone. */
extern void pmlp_nccl_group_destroy(pmlp_group *group);

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

#include <errno.h>
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
/* >>platform: threads, atomics, clock, files                                                 */
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
#include <fcntl.h>
#include <io.h>
#include <process.h>
#include <sys/stat.h>

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
static void pmlp__cond_signal_all(pmlp__cond *c) { WakeAllConditionVariable(c); }

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

/* Binds the calling thread to the nth of the cores that it may use. */
static bool pmlp__bind_thread(int nth) {
    DWORD_PTR allowed, of_system, core = 1;
    if (!GetProcessAffinityMask(GetCurrentProcess(), &allowed, &of_system) || !allowed)
        return false;
    for (;;) {
        if ((allowed & core) && nth-- == 0) return SetThreadAffinityMask(GetCurrentThread(), core);
        core = core << 1 ? core << 1 : 1;
    }
}

/* False for devices and folders, which nobody wants removed. */
static bool pmlp__is_file(const char *path) {
    const DWORD attributes = GetFileAttributesA(path);
    return attributes != INVALID_FILE_ATTRIBUTES &&
           !(attributes & (FILE_ATTRIBUTE_DIRECTORY | FILE_ATTRIBUTE_DEVICE));
}
static bool pmlp__exists(const char *path) {
    return GetFileAttributesA(path) != INVALID_FILE_ATTRIBUTES;
}

/* Each sets errno when it returns -1. */
static int pmlp__create_file(const char *path) {
    return _open(path, _O_WRONLY | _O_CREAT | _O_EXCL | _O_BINARY | _O_NOINHERIT,
                 _S_IREAD | _S_IWRITE);
}
static long pmlp__write_some(int file, const unsigned char *bytes, size_t size) {
    return _write(file, bytes, size < 1u << 30 ? (unsigned)size : 1u << 30);
}
static int pmlp__flush_file(int file) { return _commit(file); } /* FlushFileBuffers() */
static int pmlp__close_file(int file) { return _close(file); }
static int pmlp__rename_file(const char *from, const char *to) {
    if (MoveFileExA(from, to, MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH)) return 0;
    errno = EACCES;
    return -1;
}
static int pmlp__flush_folder(const char *folder) { (void)folder; return 0; }
static unsigned long pmlp__process(void) { return (unsigned long)_getpid(); }
#define PMLP__FOLDER_ENDS "/\\:"

#else
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/stat.h>
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
static void pmlp__cond_signal_all(pmlp__cond *c) { pthread_cond_broadcast(c); }

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

/* Binds the calling thread to the nth of the cores that it may use. */
#ifdef __linux__
/* Strict C99 hides these two functions, hence names of our own; a set of cores is its bits. */
#ifdef __cplusplus
extern "C" {
#endif
int pmlp__get_cores(int thread, size_t bytes, unsigned long *cores) __asm__("sched_getaffinity");
int pmlp__set_cores(int thread, size_t bytes, const unsigned long *cores)
    __asm__("sched_setaffinity");
#ifdef __cplusplus
}
#endif

static bool pmlp__bind_thread(int nth) {
    unsigned long allowed[32], one[32]; /* of 64 bits each, or of 32 */
    const size_t bits = 8 * sizeof one[0], cores = 32 * bits;
    size_t i, found = 0;
    memset(allowed, 0, sizeof allowed);
    if (pmlp__get_cores(0, sizeof allowed, allowed) < 0) return false;
    for (i = 0; i < cores; i++) found += allowed[i / bits] >> i % bits & 1u;
    if (found == 0) return false;
    found = (size_t)nth % found;
    for (i = 0; !(allowed[i / bits] >> i % bits & 1u) || found-- > 0;) i++;
    memset(one, 0, sizeof one);
    one[i / bits] = 1ul << i % bits;
    return pmlp__set_cores(0, sizeof one, one) == 0;
}
#else
static bool pmlp__bind_thread(int nth) { (void)nth; return false; }
#endif

static bool pmlp__is_file(const char *path) {
    struct stat status;
    return stat(path, &status) == 0 && S_ISREG(status.st_mode);
}
static bool pmlp__exists(const char *path) {
    struct stat status;
    return stat(path, &status) == 0;
}

/* Strict C99 hides this one, too. */
#ifdef __cplusplus
extern "C" {
#endif
int fsync(int file);
#ifdef __cplusplus
}
#endif

#ifndef O_CLOEXEC
#define O_CLOEXEC 0
#endif

/* Each sets errno when it returns -1. */
static int pmlp__create_file(const char *path) {
    return open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
}
static long pmlp__write_some(int file, const unsigned char *bytes, size_t size) {
    return (long)write(file, bytes, size < 1u << 30 ? size : 1u << 30);
}
static int pmlp__flush_file(int file) { return fsync(file); }
static int pmlp__close_file(int file) { return close(file); }
static int pmlp__rename_file(const char *from, const char *to) { return rename(from, to); }
/* What is renamed lasts only when its folder is on the disk, too. Folders that cannot be opened or
   flushed, as on some network file systems, are left to the system. */
static int pmlp__flush_folder(const char *folder) {
    const int file = open(folder, O_RDONLY | O_CLOEXEC);
    int failed, reason;
    if (file < 0) return 0;
    failed = fsync(file) != 0 && errno == EIO;
    reason = errno;
    close(file);
    errno = reason;
    return failed ? -1 : 0;
}
static unsigned long pmlp__process(void) { return (unsigned long)getpid(); }
#define PMLP__FOLDER_ENDS "/"
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

/* A float as files have it, little-endian, whatever this machine's order is. */
static void pmlp__put_float(unsigned char *bytes, const float *value) {
    uint32_t bits;
    int i;
    memcpy(&bits, value, sizeof bits);
    for (i = 0; i < 4; i++) bytes[i] = (unsigned char)(bits >> 8 * i);
}

/* pmlp_hash() of n floats as files have them. */
static uint64_t pmlp__hash_floats(uint64_t hash, const float *values, size_t n) {
    unsigned char bytes[4];
    size_t i;
    for (i = 0; i < n; i++) {
        pmlp__put_float(bytes, &values[i]);
        hash = pmlp_hash(hash, bytes, sizeof bytes);
    }
    return hash;
}

/* The end of a path that is too long for a sentence. */
static const char *pmlp__path_end(const char *path) {
    const size_t length = strlen(path), shown = 100;
    return length > shown ? path + length - shown : path;
}

/* Text into a caller's buffer as snprintf would: counts on past its end. */
typedef struct pmlp__text {
    char *buffer;
    size_t size, length;
} pmlp__text;

static void pmlp__put(pmlp__text *text, const char *format, ...) PMLP__FORMAT(2, 3);
static void pmlp__put(pmlp__text *text, const char *format, ...) {
    const size_t room = text->length < text->size ? text->size - text->length : 0;
    va_list arguments;
    int n;
    va_start(arguments, format);
    n = vsnprintf(room ? text->buffer + text->length : NULL, room, format, arguments);
    va_end(arguments);
    if (n > 0) text->length += (size_t)n;
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

#define PMLP__MAX_WIDTH 16 /* the widest panel of any instruction set */
#define PMLP__K_BLOCK 136  /* rows of a panel that stay in the innermost cache; no multiple of 16,
                              lest all rows of a block begin in the same bank of that cache */
#define PMLP__M_BLOCK 128  /* rows of a batch that stay in the next one */

/* One tile of a product: c [M][panels x width] = or += sum over k of a[i][k] p[k][..], where a is a
   block, whose rows have PMLP__K_BLOCK floats, and p a packed panel or two neighbouring ones.
   Meanwhile what is needed next is fetched into the cache, `step` floats further with each k; a
   hint, so that it may reach beyond the end of an array. */
typedef struct pmlp__tile {
    size_t k;
    const float *a;
    const float *p;    /* [k][width], the second panel p_panel further */
    float *c;          /* rows c_row apart; what belongs to the second panel c_panel further */
    const float *next; /* for the second panel next_panel further */
    size_t p_panel, c_row, c_panel, next_panel, step;
    bool accumulate;
} pmlp__tile;

typedef void (*pmlp__tile_fn)(const pmlp__tile *tile);

#define PMLP__MAX_PANELS 2 /* that a tile may have side by side */

/* What an update does, worked out once for all parameters of a stage. */
typedef struct pmlp__rule {
    pmlp_optimizer optimizer;
    float lr, mu, scale, b1, b2, eps;
    double fix1, fix2; /* Adam: 1 - b^step */
} pmlp__rule;

/* An instruction set: the panel width it likes, how many panels a tile has at best, a tile of each
   height from 1 up to the tallest that its registers hold, and the loops over elements. */
typedef struct pmlp__isa {
    const char *name;
    size_t width, panels;
    size_t tallest[PMLP__MAX_PANELS];             /* of one panel, of two */
    const pmlp__tile_fn *tiles[PMLP__MAX_PANELS]; /* [tallest] each */
    void (*activate)(pmlp_activation f, size_t rows, size_t n, const float *b, float *y, size_t row,
                     size_t keep);
    void (*derive)(pmlp_activation f, size_t rows, size_t n, const float *y, size_t row,
                   size_t keep, float *d);
    void (*transpose)(size_t m, size_t n, const float *from, size_t from_row, float *to,
                      size_t to_row);
    void (*pack)(size_t k, const float *from, size_t row, float *p, float *sum);
    void (*update)(const pmlp__rule *rule, float decay, size_t n, float *w, const float *g,
                   float *m1, float *m2);
} pmlp__isa;

#if PMLP__GNU
#  define PMLP__INLINE static inline __attribute__((always_inline))
#  define PMLP__FMA __builtin_fmaf
#  define PMLP__RESTRICT __restrict
#else
#  define PMLP__INLINE static
#  define PMLP__FMA fmaf
#  define PMLP__RESTRICT
#endif

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
PMLP__INLINE void pmlp__activate(pmlp_activation f, size_t rows, size_t n,
                                 const float *PMLP__RESTRICT b, float *PMLP__RESTRICT y,
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
PMLP__INLINE void pmlp__derive(pmlp_activation f, size_t rows, size_t n,
                               const float *PMLP__RESTRICT y, size_t row, size_t keep,
                               float *PMLP__RESTRICT d) {
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

/* --- optimizers ------------------------------------------------------------------------------- */

/* n parameters w with gradients g and the moments that the optimizer has. A multiply-add rounds
   once: it is fused, or a sum of doubles, of which the product of two floats is an exact one.
   Written once, compiled for each instruction set. */
PMLP__INLINE void pmlp__update(bool fused, const pmlp__rule *r, float decay, size_t n,
                               float *PMLP__RESTRICT w, const float *PMLP__RESTRICT g,
                               float *PMLP__RESTRICT m1, float *PMLP__RESTRICT m2) {
    const bool apart = r->optimizer == PMLP_ADAMW; /* decay apart from the gradient */
    const float lr = r->lr, mu = r->mu, scale = r->scale, l2 = apart ? 0.0f : decay;
    const double b1 = (double)r->b1, b2 = (double)r->b2, eps = (double)r->eps;
    const double fix2 = r->fix2, rate = (double)lr / r->fix1;
    const double keep = apart ? (double)(float)(1.0 - (double)lr * (double)decay) : 1.0;
    size_t i;
#define PMLP__MADD(a, b, c) \
    (fused ? PMLP__FMA(a, b, c) : (float)((double)(a) * (double)(b) + (double)(c)))
#define PMLP__GRADIENT PMLP__MADD(l2, w[i], scale * g[i])
    switch (r->optimizer) {
    case PMLP_MOMENTUM:
        for (i = 0; i < n; i++) {
            m1[i] = PMLP__MADD(mu, m1[i], PMLP__GRADIENT);
            w[i] = PMLP__MADD(-lr, m1[i], w[i]);
        }
        break;
    case PMLP_NESTEROV:
        for (i = 0; i < n; i++) {
            const float d = PMLP__GRADIENT;
            m1[i] = PMLP__MADD(mu, m1[i], d);
            w[i] = PMLP__MADD(-lr, PMLP__MADD(mu, m1[i], d), w[i]);
        }
        break;
    case PMLP_ADAM:
    case PMLP_ADAMW:
        for (i = 0; i < n; i++) {
            const float d = PMLP__GRADIENT;
            const float d1 = (float)((1.0 - b1) * (double)d);
            const float d2 = (float)((1.0 - b2) * ((double)d * (double)d));
            m1[i] = PMLP__MADD(r->b1, m1[i], d1);
            m2[i] = PMLP__MADD(r->b2, m2[i], d2);
            w[i] = (float)(keep * (double)w[i] -
                           rate * (double)m1[i] / (sqrt((double)m2[i] / fix2) + eps));
        }
        break;
    default:
        for (i = 0; i < n; i++) w[i] = PMLP__MADD(-lr, PMLP__GRADIENT, w[i]);
    }
#undef PMLP__GRADIENT
#undef PMLP__MADD
}

/* A panel p [k][width] from k rows; their sum is added to sum [width], row after row. */
PMLP__INLINE void pmlp__pack(size_t width, size_t k, const float *PMLP__RESTRICT from, size_t row,
                             float *PMLP__RESTRICT p, float *PMLP__RESTRICT sum) {
    size_t j;
    for (; k > 0; k--, from += row, p += width)
        for (j = 0; j < width; j++) {
            p[j] = from[j];
            sum[j] += from[j];
        }
}

#if defined(__CUDACC__) /* nvcc hands the pragma below on to the host's compiler, but warns */
#  pragma nv_diag_suppress 1675
#endif
#if defined(__clang__)
#  define PMLP__UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#  define PMLP__UNROLL _Pragma("GCC unroll 32")
#endif

/* The register tile: M rows by NV vectors of LANES floats of the result stay in registers while k
   runs; each step loads one row of the panel or panels (NV vectors) and, for each of the M rows,
   one number of a that is spread over a vector:

        p[k]      [ b0 ........ b15 ][ b16 ....... b31 ]      one row of two panels, loaded once
        a[0][k]   s0 += a[0][k] * b  s1 += a[0][k] * b        a tile loads M + NV times for M NV
        a[1][k]   s2 += a[1][k] * b  s3 += a[1][k] * b        multiply-adds: the squarer, the less
        ...                                                   it waits for loads

   until the registers run out. The distance of a's rows is known to the compiler, so that it need
   not be added up. With AVX-512, 14 rows of two panels need all registers; where only one panel is
   left, 24 rows of it.

   A macro, because C has no templates: the same loop for each instruction set and height; PER of
   the NV vectors make a panel. Reading and writing c at both ends is what lets a sum be cut into
   pieces without changing its bits. */
#define PMLP__DEFINE_TILE(NAME, TARGET, VEC, LANES, PER, NV, M, ZERO, LOAD, STORE, SPLAT, MADD) \
    TARGET static void NAME(const pmlp__tile *t) {                                             \
        const size_t p_panel = t->p_panel, c_row = t->c_row, c_panel = t->c_panel;             \
        const size_t next_panel = t->next_panel, step = t->step;                               \
        const float *a = t->a, *p = t->p, *next = t->next, *const end = a + t->k;              \
        float *const c = t->c;                                                                 \
        VEC s[M][NV];                                                                          \
        size_t i, j;                                                                           \
        PMLP__UNROLL for (i = 0; i < M; i++) {                                                 \
            PMLP__UNROLL for (j = 0; j < NV; j++)                                              \
                s[i][j] = t->accumulate ? LOAD(c + i * c_row +                                 \
                                               (j / PER) * c_panel + (j % PER) * LANES)        \
                                        : ZERO();                                              \
        }                                                                                      \
        for (; a < end; a++, p += PER * LANES, next += step) {                                 \
            VEC b[NV];                                                                         \
            PMLP__UNROLL for (j = 0; j < NV; j += PER)                                         \
                __builtin_prefetch(next + (j / PER) * next_panel);                             \
            PMLP__UNROLL for (j = 0; j < NV; j++)                                              \
                b[j] = LOAD(p + (j / PER) * p_panel + (j % PER) * LANES);                      \
            PMLP__UNROLL for (i = 0; i < M; i++) {                                             \
                const VEC x = SPLAT(a[i * PMLP__K_BLOCK]);                                     \
                PMLP__UNROLL for (j = 0; j < NV; j++) s[i][j] = MADD(x, b[j], s[i][j]);        \
            }                                                                                  \
        }                                                                                      \
        PMLP__UNROLL for (i = 0; i < M; i++) {                                                 \
            PMLP__UNROLL for (j = 0; j < NV; j++)                                              \
                STORE(c + i * c_row + (j / PER) * c_panel + (j % PER) * LANES,                 \
                      s[i][j]);                                                                \
        }                                                                                      \
    }

/* --- plain C: one row of 8; exact products in double keep it independent of fusing ------------ */

static void pmlp__tile_generic(const pmlp__tile *t) {
    const float *a = t->a, *p = t->p, *const end = a + t->k;
    float s[8], *const c = t->c;
    int j;
    for (j = 0; j < 8; j++) s[j] = t->accumulate ? c[j] : 0.0f;
    for (; a < end; a++, p += 8)
        for (j = 0; j < 8; j++) s[j] = (float)((double)s[j] + (double)*a * (double)p[j]);
    for (j = 0; j < 8; j++) c[j] = s[j];
}

/* to [n][m] = from [m][n], transposed */
static void pmlp__transpose_generic(size_t m, size_t n, const float *from, size_t from_row,
                                    float *to, size_t to_row) {
    size_t i, j;
    for (i = 0; i < m; i++)
        for (j = 0; j < n; j++) to[j * to_row + i] = from[i * from_row + j];
}

#define PMLP__TIMES_6(X) X(1) X(2) X(3) X(4) X(5) X(6)
#define PMLP__TIMES_8(X) PMLP__TIMES_6(X) X(7) X(8)
#define PMLP__TIMES_14(X) PMLP__TIMES_8(X) X(9) X(10) X(11) X(12) X(13) X(14)
#define PMLP__TIMES_24(X)                                                                      \
    PMLP__TIMES_14(X) X(15) X(16) X(17) X(18) X(19) X(20) X(21) X(22) X(23) X(24)

/* The loops over elements and the table of an instruction set whose tiles and transpose exist. */
#define PMLP__DEFINE_ISA(ISA, TARGET, FUSED, WIDTH, PANELS, TALLEST, TILES, TALLEST_OF_TWO,    \
                         TILES_OF_TWO)                                                         \
    TARGET static void pmlp__activate_##ISA(pmlp_activation f, size_t rows, size_t n,          \
                                            const float *b, float *y, size_t row,              \
                                            size_t keep) {                                     \
        pmlp__activate(f, rows, n, b, y, row, keep);                                           \
    }                                                                                          \
    TARGET static void pmlp__derive_##ISA(pmlp_activation f, size_t rows, size_t n,            \
                                          const float *y, size_t row, size_t keep, float *d) { \
        pmlp__derive(f, rows, n, y, row, keep, d);                                             \
    }                                                                                          \
    TARGET static void pmlp__pack_##ISA(size_t k, const float *from, size_t row, float *p,     \
                                        float *sum) {                                          \
        pmlp__pack(WIDTH, k, from, row, p, sum);                                               \
    }                                                                                          \
    TARGET static void pmlp__update_##ISA(const pmlp__rule *rule, float decay, size_t n,       \
                                          float *w, const float *g, float *m1, float *m2) {    \
        pmlp__update(FUSED, rule, decay, n, w, g, m1, m2);                                     \
    }                                                                                          \
    static const pmlp__tile_fn pmlp__tiles_##ISA[TALLEST + TALLEST_OF_TWO] = {TILES            \
                                                                              TILES_OF_TWO};   \
    static const pmlp__isa pmlp__isa_##ISA = {                                                 \
        #ISA, WIDTH, PANELS, {TALLEST, TALLEST_OF_TWO},                                        \
        {pmlp__tiles_##ISA, pmlp__tiles_##ISA + TALLEST}, pmlp__activate_##ISA,                \
        pmlp__derive_##ISA, pmlp__transpose_##ISA, pmlp__pack_##ISA, pmlp__update_##ISA}

#define PMLP__GENERIC_NAME pmlp__tile_generic,
PMLP__DEFINE_ISA(generic, , false, 8, 1, 1, PMLP__GENERIC_NAME, 0, );

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
#define PMLP__SSE2_TILE(M)                                                                     \
    PMLP__DEFINE_TILE(pmlp__tile_sse2_##M, , __m128, 4, 2, 2, M, _mm_setzero_ps, _mm_loadu_ps,    \
                      _mm_storeu_ps, _mm_set1_ps, pmlp__sse2_madd)
PMLP__TIMES_6(PMLP__SSE2_TILE)

static void pmlp__transpose_sse2(size_t m, size_t n, const float *from, size_t from_row, float *to,
                                 size_t to_row) {
    const size_t m4 = m - m % 4, n4 = n - n % 4;
    size_t i, j;
    for (j = 0; j < n4; j += 4)
        for (i = 0; i < m4; i += 4) {
            const float *f = from + i * from_row + j;
            float *t = to + j * to_row + i;
            __m128 a = _mm_loadu_ps(f), b = _mm_loadu_ps(f + from_row);
            __m128 c = _mm_loadu_ps(f + 2 * from_row), d = _mm_loadu_ps(f + 3 * from_row);
            _MM_TRANSPOSE4_PS(a, b, c, d);
            _mm_storeu_ps(t, a);
            _mm_storeu_ps(t + to_row, b);
            _mm_storeu_ps(t + 2 * to_row, c);
            _mm_storeu_ps(t + 3 * to_row, d);
        }
    pmlp__transpose_generic(m - m4, n, from + m4 * from_row, from_row, to + m4, to_row);
    pmlp__transpose_generic(m4, n - n4, from + n4, from_row, to + n4 * to_row, to_row);
}
#define PMLP__SSE2_NAME(M) pmlp__tile_sse2_##M,
PMLP__DEFINE_ISA(sse2, , false, 8, 1, 6, PMLP__TIMES_6(PMLP__SSE2_NAME), 0, );

#define PMLP__AVX2 __attribute__((target("avx2,fma")))
#define PMLP__AVX2_TILE(M)                                                                     \
    PMLP__DEFINE_TILE(pmlp__tile_avx2_##M, PMLP__AVX2, __m256, 8, 2, 2, M, _mm256_setzero_ps,     \
                      _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps, _mm256_fmadd_ps)
PMLP__TIMES_6(PMLP__AVX2_TILE)
#define pmlp__transpose_avx2 pmlp__transpose_sse2
#define PMLP__AVX2_NAME(M) pmlp__tile_avx2_##M,
PMLP__DEFINE_ISA(avx2, PMLP__AVX2, true, 16, 1, 6, PMLP__TIMES_6(PMLP__AVX2_NAME), 0, );

#define PMLP__AVX512 __attribute__((target("avx512f")))
#define PMLP__AVX512_TILE_OF(PANELS, NAME, M)                                                  \
    PMLP__DEFINE_TILE(NAME, PMLP__AVX512, __m512, 16, 1, PANELS, M, _mm512_setzero_ps,         \
                      _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps, _mm512_fmadd_ps)
#define PMLP__AVX512_TILE(M) PMLP__AVX512_TILE_OF(1, pmlp__tile_avx512_##M, M)
#define PMLP__AVX512_PAIR(M) PMLP__AVX512_TILE_OF(2, pmlp__pair_avx512_##M, M)
PMLP__TIMES_24(PMLP__AVX512_TILE)
PMLP__TIMES_14(PMLP__AVX512_PAIR)

/* Squares of 16 x 16 in registers: of each 2 x 2 numbers the two off the diagonal change places,
   then of each 2 x 2 such squares, and so on. */
PMLP__AVX512 static void pmlp__transpose_avx512(size_t m, size_t n, const float *from,
                                                size_t from_row, float *to, size_t to_row) {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const size_t m16 = m - m % 16, n16 = n - n % 16;
    size_t i, j;
    int k, d;
    for (j = 0; j < n16; j += 16)
        for (i = 0; i < m16; i += 16) {
            __m512 a[16];
            PMLP__UNROLL for (k = 0; k < 16; k++)
                a[k] = _mm512_loadu_ps(from + (i + (size_t)k) * from_row + j);
            PMLP__UNROLL for (d = 1; d < 16; d *= 2) {
                const __mmask16 odd = _mm512_test_epi32_mask(lane, _mm512_set1_epi32(d));
                const __m512i left = _mm512_mask_add_epi32(lane, odd, lane,
                                                           _mm512_set1_epi32(16 - d));
                const __m512i right = _mm512_add_epi32(left, _mm512_set1_epi32(d));
                PMLP__UNROLL for (k = 0; k < 16; k++) {
                    const __m512 x = a[k], y = a[(k + d) % 16];
                    if (k & d) continue;
                    a[k] = _mm512_permutex2var_ps(x, left, y);
                    a[k + d] = _mm512_permutex2var_ps(x, right, y);
                }
            }
            PMLP__UNROLL for (k = 0; k < 16; k++)
                _mm512_storeu_ps(to + (j + (size_t)k) * to_row + i, a[k]);
        }
    pmlp__transpose_sse2(m - m16, n, from + m16 * from_row, from_row, to + m16, to_row);
    pmlp__transpose_sse2(m16, n - n16, from + n16, from_row, to + n16 * to_row, to_row);
}
#define PMLP__AVX512_NAME(M) pmlp__tile_avx512_##M,
#define PMLP__AVX512_PAIR_NAME(M) pmlp__pair_avx512_##M,
PMLP__DEFINE_ISA(avx512, PMLP__AVX512, true, 16, 2, 24, PMLP__TIMES_24(PMLP__AVX512_NAME), 14,
                 PMLP__TIMES_14(PMLP__AVX512_PAIR_NAME));
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
#define PMLP__NEON_TILE(M)                                                                     \
    PMLP__DEFINE_TILE(pmlp__tile_neon_##M, , float32x4_t, 4, 2, 2, M, pmlp__neon_zero, vld1q_f32, \
                      vst1q_f32, vdupq_n_f32, pmlp__neon_madd)
PMLP__TIMES_8(PMLP__NEON_TILE)

#define pmlp__transpose_neon pmlp__transpose_generic
#define PMLP__NEON_NAME(M) pmlp__tile_neon_##M,
PMLP__DEFINE_ISA(neon, , true, 8, 1, 8, PMLP__TIMES_8(PMLP__NEON_NAME), 0, );
#else
#define PMLP__NEON 0
#endif

/* --- matrix products -------------------------------------------------------------------------- */

/* Three products make a layer, with B rows of a batch:

        forward   y  [B][n_out]     = x  [B][n_in]      W^T   sum over the inputs
        I         dx [B][n_in]      = dz [B][n_out]     W     sum over the outputs
        W         dW [n_out][n_in] += dz^T [n_out][B]   x     sum over the rows

   The right-hand factor is cut into panels of `width` columns, stored one row of the panel behind
   the other, so that the innermost loop reads memory in order. The rest is loops around it. */
/* So many panels of a factor, m rows of the other, from the first tile on. The rows are shared out
   evenly among as few tiles as possible, and so is fetching what comes next. */
static void pmlp__gemm_panels(const pmlp__isa *isa, size_t panels, size_t m, pmlp__tile tile) {
    const size_t tallest = isa->tallest[panels - 1];
    size_t left = (m + tallest - 1) / tallest, rows;
    tile.step = (isa->width + left - 1) / left;
    for (; left > 0; left--, m -= rows) {
        rows = (m + left - 1) / left;
        isa->tiles[panels - 1][rows - 1](&tile);
        tile.a += rows * PMLP__K_BLOCK;
        tile.c += rows * tile.c_row;
        tile.next += tile.k * tile.step;
    }
}

/* How many panels a tile takes of those that are left from j on. */
static size_t pmlp__panels_at(const pmlp__isa *isa, size_t j, size_t n) {
    const size_t left = (n - j) / isa->width;
    return left < isa->panels ? left : isa->panels;
}

/* c [m][n] = a [m][k] times the panels p [n / width][k][width], k in blocks; k may be 0, which
   makes c zero. `block` is room for m rows. */
static void pmlp__gemm(const pmlp__isa *isa, size_t m, size_t n, size_t k, const float *a,
                       size_t a_row, const float *p, float *c, size_t c_row, float *block) {
    const size_t width = isa->width;
    size_t left = (k + PMLP__K_BLOCK - 1) / PMLP__K_BLOCK, done = 0, i, j, panels;
    pmlp__tile tile;
    tile.a = block;
    tile.p_panel = tile.next_panel = k * width;
    tile.c_row = c_row;
    tile.c_panel = width;
    do {
        tile.k = left > 0 ? (k - done + left - 1) / left : 0;
        tile.accumulate = done > 0;
        for (i = 0; i < m; i++)
            memcpy(block + i * PMLP__K_BLOCK, a + i * a_row + done, tile.k * sizeof *a);
        for (j = 0; j < n; j += panels * width) {
            panels = pmlp__panels_at(isa, j, n);
            tile.p = p + j * k + done * width;
            tile.next = tile.p + panels * k * width;
            tile.c = c + j;
            pmlp__gemm_panels(isa, panels, m, tile);
        }
        done += tile.k, left--;
    } while (done < k);
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
    float *pack;      /* [panels][K_BLOCK][width], of dz */
    float *tile;      /* [panels][tallest][width], of dW */
    float *block;     /* [block_rows][K_BLOCK], of a left-hand factor */
    size_t block_rows;
} pmlp__cpu;

typedef struct pmlp__cpu_layer {
    pmlp_layer_desc desc;
    size_t pad_out, count;                  /* n_out rounded up to the width; floats of w */
    float *w[PMLP_TENSOR_COUNT];            /* [pad_out / width][n_in][width]; NULL if not needed;
                                               of the parameters one such tensor per version */
    float *b[PMLP_TENSOR_COUNT];            /* [pad_out]; alike, in one piece behind w */
    size_t transposed_count;                /* floats of one version of: */
    float *transposed;                      /* [pad_in / width][n_out][width]; NULL for layer 0 */
    bool *is_current;                       /* [versions]: transposed is that of w */
    int latest;                             /* version that was written last */
    float *scratch;                         /* [row_outs], for the loss without a gradient */
} pmlp__cpu_layer;

static float *pmlp__cpu_w(const pmlp__cpu_layer *layer, int version) {
    return layer->w[PMLP_TENSOR_PARAMS] + (size_t)version * layer->count;
}

static float *pmlp__cpu_b(const pmlp__cpu_layer *layer, int version) {
    return layer->b[PMLP_TENSOR_PARAMS] + (size_t)version * layer->pad_out;
}

static size_t pmlp__pad(size_t n, size_t width) { return (n + width - 1) / width * width; }

static pmlp_result pmlp__cpu_open(const pmlp_backend *self, const pmlp_backend_desc *desc,
                                  void **context, pmlp_error *error) {
    pmlp__cpu *cpu = (pmlp__cpu *)pmlp__new(&desc->allocator, 1, sizeof *cpu);
    size_t panel, tile;
    if (!cpu) return pmlp__no_memory(error, "a CPU worker");
    cpu->isa = (const pmlp__isa *)self->user;
    cpu->allocator = desc->allocator;
    panel = PMLP__K_BLOCK * cpu->isa->width;
    tile = cpu->isa->tallest[0] * cpu->isa->width;
    cpu->pack =
        (float *)pmlp__new(&desc->allocator, cpu->isa->panels * (panel + tile), sizeof(float));
    if (!cpu->pack) {
        pmlp__delete(&desc->allocator, cpu);
        return pmlp__no_memory(error, "a CPU worker's scratch");
    }
    cpu->tile = cpu->pack + cpu->isa->panels * panel;
    *context = cpu;
    return PMLP_OK;
}

static void pmlp__cpu_close(void *context) {
    pmlp__cpu *cpu = (pmlp__cpu *)context;
    const pmlp_allocator allocator = cpu->allocator;
    pmlp__delete(&allocator, cpu->block);
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

/* GELU's slope cannot be had from y, so z lies behind y in each row. Rows whose distance is a
   multiple of many cache lines would compete for few places of the cache; one line more cures
   that. */
static size_t pmlp__cpu_row_floats(void *context, size_t n, pmlp_activation activation) {
    const size_t padded = pmlp__pad(n, ((pmlp__cpu *)context)->isa->width);
    const size_t row = activation == PMLP_GELU ? 2 * padded : padded;
    return row % 128 == 0 ? row + 16 : row;
}

static void pmlp__cpu_layer_destroy(void *context, void *layer_) {
    pmlp__cpu *cpu = (pmlp__cpu *)context;
    pmlp__cpu_layer *layer = (pmlp__cpu_layer *)layer_;
    int t;
    if (!layer) return;
    for (t = 0; t < PMLP_TENSOR_COUNT; t++) pmlp__delete(&cpu->allocator, layer->w[t]);
    pmlp__delete(&cpu->allocator, layer->transposed);
    pmlp__delete(&cpu->allocator, layer->is_current);
    pmlp__delete(&cpu->allocator, layer->scratch);
    pmlp__delete(&cpu->allocator, layer);
}

static int pmlp__moments(pmlp_optimizer optimizer) {
    return optimizer == PMLP_ADAM || optimizer == PMLP_ADAMW             ? 2
           : optimizer == PMLP_MOMENTUM || optimizer == PMLP_NESTEROV ? 1
                                                                         : 0;
}

/* Makes room for the blocks of products with n inputs. */
static bool pmlp__cpu_block(pmlp__cpu *cpu, size_t n) {
    const size_t rows = n < PMLP__M_BLOCK ? PMLP__M_BLOCK : n;
    float *block;
    if (rows <= cpu->block_rows) return true;
    if (pmlp__mul_overflows(PMLP__K_BLOCK, rows)) return false;
    block = (float *)pmlp__new(&cpu->allocator, PMLP__K_BLOCK * rows, sizeof(float));
    if (!block) return false;
    pmlp__delete(&cpu->allocator, cpu->block);
    cpu->block = block;
    cpu->block_rows = rows;
    return true;
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
    layer->is_current = (bool *)pmlp__new(allocator, (size_t)desc->versions, sizeof(bool));
    if (!layer->scratch || !layer->is_current) goto no_memory;
    for (t = 0; t < tensors; t++) {
        const size_t versions = t == PMLP_TENSOR_PARAMS ? (size_t)desc->versions : 1;
        const size_t each = layer->count + layer->pad_out;
        if (pmlp__mul_overflows(versions, each)) goto no_memory;
        layer->w[t] = (float *)pmlp__new(allocator, versions * each, sizeof(float));
        if (!layer->w[t]) goto no_memory;
        layer->b[t] = layer->w[t] + versions * layer->count;
    }
    if (desc->needs_input_gradient) {
        const size_t versions = (size_t)desc->versions;
        layer->transposed_count = pmlp__pad(desc->n_in, width) * desc->n_out;
        if (pmlp__mul_overflows(versions, layer->transposed_count)) goto no_memory;
        layer->transposed =
            (float *)pmlp__new(allocator, versions * layer->transposed_count, sizeof(float));
        if (!layer->transposed) goto no_memory;
    }
    if (!pmlp__cpu_block(cpu, desc->n_in)) goto no_memory;
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
    const bool params = tensor == PMLP_TENSOR_PARAMS;
    float *to = params ? pmlp__cpu_w(layer, layer->latest) : layer->w[tensor];
    size_t o, i;
    if (!layer->w[tensor]) return PMLP_OK;
    if (b)
        memcpy(params ? pmlp__cpu_b(layer, layer->latest) : layer->b[tensor], b,
               n_out * sizeof *b);
    for (o = 0; w && o < n_out; o++)
        for (i = 0; i < n_in; i++) to[pmlp__panel_at(n_in, width, o, i)] = w[o * n_in + i];
    if (params) layer->is_current[layer->latest] = false;
    return PMLP_OK;
}

static pmlp_result pmlp__cpu_read(void *context, void *layer_, pmlp_tensor tensor, float *w,
                                  float *b) {
    const size_t width = ((pmlp__cpu *)context)->isa->width;
    pmlp__cpu_layer *layer = (pmlp__cpu_layer *)layer_;
    const size_t n_in = layer->desc.n_in, n_out = layer->desc.n_out;
    const bool params = tensor == PMLP_TENSOR_PARAMS;
    const float *from = params ? pmlp__cpu_w(layer, layer->latest) : layer->w[tensor];
    size_t o, i;
    if (b && from)
        memcpy(b, params ? pmlp__cpu_b(layer, layer->latest) : layer->b[tensor],
               n_out * sizeof *b);
    if (b && !from) memset(b, 0, n_out * sizeof *b);
    for (o = 0; w && o < n_out; o++)
        for (i = 0; i < n_in; i++)
            w[o * n_in + i] = from ? from[pmlp__panel_at(n_in, width, o, i)] : 0.0f;
    return PMLP_OK;
}

static pmlp_result pmlp__cpu_input(void *context, size_t rows, size_t n, const pmlp_data *data,
                                   const uint32_t *index, size_t first, float *x) {
    const size_t row = pmlp__cpu_row_floats(context, n, PMLP_LINEAR);
    size_t i;
    for (i = 0; i < rows; i++) {
        const size_t from = index ? index[i] : first + i;
        memcpy(x + i * row, data->x + from * n, n * sizeof *x);
    }
    return PMLP_OK;
}

static pmlp_result pmlp__cpu_forward(void *context, void *layer_, int version, size_t rows,
                                     const float *x, float *y) {
    pmlp__cpu *cpu = (pmlp__cpu *)context;
    const pmlp__isa *isa = cpu->isa;
    pmlp__cpu_layer *layer = (pmlp__cpu_layer *)layer_;
    const size_t n_in = layer->desc.n_in, width = isa->width;
    const size_t x_row = pmlp__cpu_row_floats(context, n_in, layer->desc.below);
    const size_t y_row =
        pmlp__cpu_row_floats(context, layer->desc.row_outs, layer->desc.activation);
    const size_t keep = pmlp__pad(layer->desc.row_outs, width);
    const float *w = pmlp__cpu_w(layer, version), *b = pmlp__cpu_b(layer, version);
    size_t m;
    y += layer->desc.first_out;
    for (; rows > 0; rows -= m, x += m * x_row, y += m * y_row) {
        m = rows < PMLP__M_BLOCK ? rows : PMLP__M_BLOCK;
        pmlp__gemm(isa, m, layer->pad_out, n_in, x, x_row, w, y, y_row, cpu->block);
        isa->activate(layer->desc.activation, m, layer->pad_out, b, y, y_row, keep);
    }
    return PMLP_OK;
}

/* transposed [pad_in / width][n_out][width] from w [pad_out / width][n_in][width], a square of
   width x width at a time, so that neither side is walked across cache lines for long. */
static void pmlp__cpu_transpose(const pmlp__isa *isa, pmlp__cpu_layer *layer, int version,
                                float *transposed) {
    const size_t n_in = layer->desc.n_in, n_out = layer->desc.n_out, width = isa->width;
    const float *w = pmlp__cpu_w(layer, version);
    size_t i, o;
    for (o = 0; o < n_out; o += width)
        for (i = 0; i < n_in; i += width)
            isa->transpose(n_in - i < width ? n_in - i : width,
                           n_out - o < width ? n_out - o : width, w + o * n_in + i * width, width,
                           transposed + i * n_out + o * width, width);
    layer->is_current[version] = true;
}

static pmlp_result pmlp__cpu_backward_input(void *context, void *layer_, int version, size_t rows,
                                            const float *dz, const float *x, float *dz_below) {
    pmlp__cpu *cpu = (pmlp__cpu *)context;
    const pmlp__isa *isa = cpu->isa;
    pmlp__cpu_layer *layer = (pmlp__cpu_layer *)layer_;
    const size_t n_in = layer->desc.n_in, n_out = layer->desc.n_out, width = isa->width;
    const size_t dz_row = pmlp__cpu_row_floats(context, n_out, layer->desc.activation);
    const size_t x_row = pmlp__cpu_row_floats(context, n_in, layer->desc.below);
    const size_t pad_in = pmlp__pad(n_in, width);
    float *transposed;
    size_t m;
    if (!layer->transposed) return PMLP_ERROR_ARGUMENT;
    transposed = layer->transposed + (size_t)version * layer->transposed_count;
    if (!layer->is_current[version]) pmlp__cpu_transpose(isa, layer, version, transposed);
    for (; rows > 0; rows -= m, dz += m * dz_row, x += m * x_row, dz_below += m * x_row) {
        m = rows < PMLP__M_BLOCK ? rows : PMLP__M_BLOCK;
        pmlp__gemm(isa, m, pad_in, n_out, dz, dz_row, transposed, dz_below, x_row, cpu->block);
        isa->derive(layer->desc.below, m, pad_in, x, x_row, pad_in, dz_below);
    }
    return PMLP_OK;
}

/* What becomes of a gradient: dW, or at once an update. */
typedef struct pmlp__gradient_use {
    const pmlp__rule *rule; /* NULL: no update */
    float decay;
    float *w;               /* becomes w_from, updated */
    const float *w_from;
} pmlp__gradient_use;

/* Panels j .. of dW (+)= dz^T x for a block of n rows, which lie transposed in cpu->block; tile by
   tile, each of which is updated, if it is to be, while it is in the nearest cache. */
static void pmlp__cpu_gradient_panels(pmlp__cpu *cpu, pmlp__cpu_layer *layer, size_t n, size_t j,
                                      size_t panels, bool accumulate,
                                      const pmlp__gradient_use *use) {
    const pmlp__isa *isa = cpu->isa;
    const size_t n_in = layer->desc.n_in, width = isa->width, tallest = isa->tallest[panels - 1];
    const size_t panel = n_in * width;
    float *dw = layer->w[PMLP_TENSOR_GRADIENTS], *const w = use->rule ? use->w : NULL;
    float *m1 = layer->w[PMLP_TENSOR_MOMENT1], *m2 = layer->w[PMLP_TENSOR_MOMENT2];
    size_t left = (n_in + tallest - 1) / tallest, i, rows, q;
    pmlp__tile tile;
    tile.k = n;
    tile.a = cpu->block;
    tile.p = cpu->pack;
    tile.p_panel = PMLP__K_BLOCK * width;
    tile.c_row = width;
    tile.c_panel = w && !accumulate ? tallest * width : panel;
    tile.next_panel = panel;
    tile.accumulate = accumulate;
    for (i = 0; left > 0; left--, i += rows) {
        const size_t at = j * n_in + i * width;
        rows = (n_in - i + left - 1) / left;
        tile.c = w && !accumulate ? cpu->tile : dw + at;
        tile.next = (w ? w : dw) + at + rows * width;
        tile.step = rows * width / (n + 1) + 1;
        isa->tiles[panels - 1][rows - 1](&tile);
        tile.a += rows * PMLP__K_BLOCK;
        for (q = 0; w && q < panels; q++) {
            const size_t to = at + q * panel;
            if (w != use->w_from) memcpy(w + to, use->w_from + to, rows * width * sizeof *w);
            isa->update(use->rule, use->decay, rows * width, w + to, tile.c + q * tile.c_panel,
                        m1 ? m1 + to : NULL, m2 ? m2 + to : NULL);
        }
    }
}

/* dW (+)= dz^T x and what becomes of it. The rows are cut into few and even blocks: each reads and
   writes all of dW; the last one updates. */
static void pmlp__cpu_gradient(pmlp__cpu *cpu, pmlp__cpu_layer *layer, size_t rows, const float *x,
                               const float *dz, bool accumulate, const pmlp__gradient_use *use) {
    static const pmlp__gradient_use keep = {NULL, 0.0f, NULL, NULL};
    const pmlp__isa *isa = cpu->isa;
    const size_t n_in = layer->desc.n_in, width = isa->width;
    const size_t x_row = pmlp__cpu_row_floats(cpu, n_in, layer->desc.below);
    const size_t dz_row = pmlp__cpu_row_floats(cpu, layer->desc.row_outs, layer->desc.activation);
    float *db = layer->b[PMLP_TENSOR_GRADIENTS];
    size_t blocks = (rows + PMLP__K_BLOCK - 1) / PMLP__K_BLOCK, j, n, panels, q;
    dz += layer->desc.first_out;
    if (!accumulate) memset(db, 0, layer->pad_out * sizeof *db);
    do {
        n = blocks > 0 ? (rows + blocks - 1) / blocks : 0;
        isa->transpose(n, n_in, x, x_row, cpu->block, PMLP__K_BLOCK);
        for (j = 0; j < layer->pad_out; j += panels * width) {
            panels = pmlp__panels_at(isa, j, layer->pad_out);
            for (q = 0; q < panels; q++)
                isa->pack(n, dz + j + q * width, dz_row, cpu->pack + q * PMLP__K_BLOCK * width,
                          db + j + q * width);
            pmlp__cpu_gradient_panels(cpu, layer, n, j, panels, accumulate,
                                      blocks <= 1 ? use : &keep);
        }
        accumulate = true;
        rows -= n, x += n * x_row, dz += n * dz_row, blocks--;
    } while (rows > 0);
}

static pmlp_result pmlp__cpu_backward_weight(void *context, void *layer, size_t rows,
                                             const float *x, const float *dz, bool accumulate) {
    const pmlp__gradient_use keep = {NULL, 0.0f, NULL, NULL};
    pmlp__cpu_gradient((pmlp__cpu *)context, (pmlp__cpu_layer *)layer, rows, x, dz, accumulate,
                       &keep);
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
            cpu->isa->derive(layer->desc.activation, 1, n, y, row, padded, d);
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
    pmlp__cpu *cpu = (pmlp__cpu *)context;
    pmlp__cpu_layer *layer = (pmlp__cpu_layer *)layer_;
    const float decay = args->weight_decay;
    float **w = layer->w, **b = layer->b;
    float *to_w = pmlp__cpu_w(layer, args->to), *to_b = pmlp__cpu_b(layer, args->to);
    const float *from_w = pmlp__cpu_w(layer, args->from), *from_b = pmlp__cpu_b(layer, args->from);
    pmlp__gradient_use use;
    pmlp__rule rule;
    rule.optimizer = args->optimizer;
    rule.lr = args->learning_rate;
    rule.mu = args->momentum;
    rule.scale = args->gradient_scale;
    rule.b1 = args->beta1;
    rule.b2 = args->beta2;
    rule.eps = args->epsilon;
    rule.fix1 = 1.0 - pow((double)rule.b1, (double)args->step);
    rule.fix2 = 1.0 - pow((double)rule.b2, (double)args->step);
    use.rule = &rule;
    use.decay = decay;
    use.w = to_w;
    use.w_from = from_w;
    if (args->rows > 0 || args->anew)
        pmlp__cpu_gradient(cpu, layer, args->rows, args->x, args->dz, !args->anew, &use);
    else {
        if (to_w != from_w) memcpy(to_w, from_w, layer->count * sizeof *to_w);
        cpu->isa->update(&rule, decay, layer->count, to_w, w[PMLP_TENSOR_GRADIENTS],
                         w[PMLP_TENSOR_MOMENT1], w[PMLP_TENSOR_MOMENT2]);
    }
    if (to_b != from_b) memcpy(to_b, from_b, layer->pad_out * sizeof *to_b);
    cpu->isa->update(&rule, 0.0f, layer->pad_out, to_b, b[PMLP_TENSOR_GRADIENTS],
                     b[PMLP_TENSOR_MOMENT1], b[PMLP_TENSOR_MOMENT2]);
    layer->latest = args->to;
    layer->is_current[args->to] = false;
    return PMLP_OK;
}

static pmlp_result pmlp__cpu_gradient_of(void *context, void *layer_, float **data,
                                         size_t *floats) {
    pmlp__cpu_layer *layer = (pmlp__cpu_layer *)layer_;
    (void)context;
    *data = layer->w[PMLP_TENSOR_GRADIENTS];
    *floats = layer->count + layer->pad_out;
    return PMLP_OK;
}

static pmlp_result pmlp__cpu_synchronize(void *context) {
    (void)context;
    return PMLP_OK;
}

#define PMLP__CPU_BACKEND(ISA)                                                                 \
    {PMLP_BACKEND_ABI, (uint32_t)sizeof(pmlp_backend), "cpu", &ISA, NULL, true,                \
     pmlp__cpu_open, pmlp__cpu_close, pmlp__cpu_alloc, pmlp__cpu_free, pmlp__cpu_row_floats,   \
     pmlp__cpu_layer_create, pmlp__cpu_layer_destroy, pmlp__cpu_write, pmlp__cpu_read,         \
     pmlp__cpu_input, pmlp__cpu_forward, pmlp__cpu_backward_input, pmlp__cpu_backward_weight,  \
     pmlp__cpu_loss, pmlp__cpu_gradient_squares, pmlp__cpu_update, pmlp__cpu_gradient_of,      \
     pmlp__cpu_synchronize, NULL, NULL}

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

/* One worker's actions, growing at the end. */
typedef struct pmlp__list {
    pmlp_action *at;
    int count, capacity;
} pmlp__list;

struct pmlp_schedule {
    pmlp_allocator allocator;
    int workers, stages, microbatches;
    int *stage_worker; /* [stages] */
    pmlp__list *lists; /* [workers] */
    bool lowered;      /* hand-offs are actions of their own */
    int per_update;    /* micro-batches whose gradients an update takes; 0: synchronous, all */
    int delay;         /* asynchronous: updates between the weights that a micro-batch reads and
                          the newest possible; -1: it reads what is newest at its worker */
};

#define PMLP__MAX_WORKERS 16384
#define PMLP__MAX_MICROBATCHES (1 << 20)

PMLP_API void pmlp_schedule_destroy(pmlp_schedule *schedule) {
    pmlp_allocator allocator;
    int worker;
    if (!schedule) return;
    allocator = schedule->allocator;
    for (worker = 0; schedule->lists && worker < schedule->workers; worker++)
        pmlp__delete(&allocator, schedule->lists[worker].at);
    pmlp__delete(&allocator, schedule->lists);
    pmlp__delete(&allocator, schedule->stage_worker);
    pmlp__delete(&allocator, schedule);
}

/* A schedule whose lists are empty; all stages are worker 0's until somebody says otherwise. */
static pmlp_schedule *pmlp__schedule_new(const pmlp_allocator *allocator, int workers, int stages,
                                         int microbatches) {
    pmlp_schedule *s = (pmlp_schedule *)pmlp__new(allocator, 1, sizeof *s);
    if (!s) return NULL;
    s->allocator = *allocator;
    s->workers = workers;
    s->stages = stages;
    s->microbatches = microbatches;
    s->stage_worker = (int *)pmlp__new(allocator, (size_t)stages, sizeof *s->stage_worker);
    s->lists = (pmlp__list *)pmlp__new(allocator, (size_t)workers, sizeof *s->lists);
    if (s->stage_worker && s->lists) return s;
    pmlp_schedule_destroy(s);
    return NULL;
}

/* The same sizes, owners and rules as another schedule, without its actions. */
static pmlp_schedule *pmlp__schedule_like(const pmlp_schedule *s, const pmlp_allocator *allocator) {
    pmlp_schedule *out = pmlp__schedule_new(allocator, s->workers, s->stages, s->microbatches);
    if (!out) return NULL;
    memcpy(out->stage_worker, s->stage_worker, (size_t)s->stages * sizeof *s->stage_worker);
    out->lowered = s->lowered;
    out->per_update = s->per_update;
    out->delay = s->delay;
    return out;
}

/* Room for `capacity` actions of a worker; false if there is no memory. */
static bool pmlp__reserve(pmlp_schedule *s, int worker, int capacity) {
    pmlp__list *list = &s->lists[worker];
    pmlp_action *grown;
    if (capacity <= list->capacity) return true;
    grown = (pmlp_action *)pmlp__new(&s->allocator, (size_t)capacity, sizeof *grown);
    if (!grown) return false;
    if (list->count) memcpy(grown, list->at, (size_t)list->count * sizeof *grown);
    pmlp__delete(&s->allocator, list->at);
    list->at = grown;
    list->capacity = capacity;
    return true;
}

/* Appends to the list of `worker`; false if there is no memory. */
static bool pmlp__emit(pmlp_schedule *s, int worker, pmlp_op op, int stage, int microbatch) {
    pmlp__list *list = &s->lists[worker];
    pmlp_action *a;
    if (list->count == list->capacity) {
        if (list->capacity > INT_MAX / 2) return false;
        if (!pmlp__reserve(s, worker, list->capacity ? 2 * list->capacity : 16)) return false;
    }
    a = &list->at[list->count++];
    a->op = op;
    a->stage = stage;
    a->microbatch = microbatch;
    return true;
}

static pmlp_schedule *pmlp__schedule_copy(const pmlp_schedule *s, const pmlp_allocator *allocator) {
    pmlp_schedule *out = pmlp__schedule_like(s, allocator);
    int worker;
    for (worker = 0; out && worker < s->workers; worker++) {
        const pmlp__list *from = &s->lists[worker];
        if (!pmlp__reserve(out, worker, from->count)) {
            pmlp_schedule_destroy(out);
            return NULL;
        }
        out->lists[worker].count = from->count;
        if (from->count)
            memcpy(out->lists[worker].at, from->at, (size_t)from->count * sizeof *from->at);
    }
    return out;
}

static size_t pmlp__action_count(const pmlp_schedule *s) {
    size_t count = 0;
    int worker;
    for (worker = 0; worker < s->workers; worker++) count += (size_t)s->lists[worker].count;
    return count;
}

PMLP_API int pmlp_schedule_workers(const pmlp_schedule *s) { return s ? s->workers : 0; }
PMLP_API int pmlp_schedule_stages(const pmlp_schedule *s) { return s ? s->stages : 0; }
PMLP_API int pmlp_schedule_microbatches(const pmlp_schedule *s) { return s ? s->microbatches : 0; }

PMLP_API bool pmlp_schedule_is_synchronous(const pmlp_schedule *s) {
    return s && s->per_update == 0;
}

PMLP_API int pmlp_schedule_stage_worker(const pmlp_schedule *s, int stage) {
    return s && stage >= 0 && stage < s->stages ? s->stage_worker[stage] : -1;
}

PMLP_API const pmlp_action *pmlp_schedule_actions(const pmlp_schedule *s, int worker, int *count) {
    const bool exists = s && worker >= 0 && worker < s->workers;
    if (count) *count = exists ? s->lists[worker].count : 0;
    return exists ? s->lists[worker].at : NULL;
}

/* What has been seen of micro-batch i in stage s: bits in seen[s * m + i]. */
#define PMLP__SEEN_F 1u
#define PMLP__SEEN_I 2u
#define PMLP__SEEN_W 4u
#define PMLP__SEEN_RECV_F 8u
#define PMLP__SEEN_RECV_B 16u
#define PMLP__SEEN_SEND_F 32u
#define PMLP__SEEN_SEND_B 64u

static unsigned pmlp__seen_by(pmlp_op op) {
    switch (op) {
    case PMLP_OP_F: return PMLP__SEEN_F;
    case PMLP_OP_I: return PMLP__SEEN_I;
    case PMLP_OP_W: return PMLP__SEEN_W;
    case PMLP_OP_B: return PMLP__SEEN_I | PMLP__SEEN_W;
    case PMLP_OP_RECV_F: return PMLP__SEEN_RECV_F;
    case PMLP_OP_RECV_B: return PMLP__SEEN_RECV_B;
    case PMLP_OP_SEND_F: return PMLP__SEEN_SEND_F;
    case PMLP_OP_SEND_B: return PMLP__SEEN_SEND_B;
    default: return 0;
    }
}

static bool pmlp__is_send(pmlp_op op) { return op == PMLP_OP_SEND_F || op == PMLP_OP_SEND_B; }

/* True if a stage and its neighbour (stage + 1 or stage - 1) both exist, on different workers. */
static bool pmlp__crosses(const pmlp_schedule *s, int stage, int neighbour) {
    return neighbour >= 0 && neighbour < s->stages &&
           s->stage_worker[stage] != s->stage_worker[neighbour];
}

/* --- weight versions -------------------------------------------------------------------------- */

/* Version n of a stage's weights is what its n-th update left behind, 0 what it began with. Which
   one a micro-batch reads, in its forward and in its backward: the newest, or, with a delay, the
   one that lies `delay` updates before the first that could be there at every stage. `before` are
   the updates of earlier passes, `now` those of this pass as well. */
static uint64_t pmlp__version_read(const pmlp_schedule *s, uint64_t before, uint64_t now,
                                   int microbatch) {
    uint64_t group;
    if (s->per_update == 0 || s->delay < 0) return now;
    group = before + (uint64_t)(microbatch / s->per_update);
    return group > (uint64_t)s->delay ? group - (uint64_t)s->delay : 0;
}

/* The most versions between the oldest that a backward still needs and the newest. Micro-batches
   enter and leave in ascending order, so that two walks over the list do: one at the present, one
   at the forward of the oldest micro-batch that has not had its backward. */
PMLP_API int pmlp_schedule_versions(const pmlp_schedule *s, int stage) {
    const pmlp__list *list;
    uint64_t updates = 0, updates_then = 0, oldest, most = 1;
    int backwards = 0, now, then = 0;
    if (!s || stage < 0 || stage >= s->stages) return 0;
    if (s->per_update == 0) return 1;
    list = &s->lists[s->stage_worker[stage]];
    for (now = 0; now < list->count; now++) {
        const pmlp_action a = list->at[now];
        if (a.stage != stage) continue;
        backwards += (pmlp__seen_by(a.op) & PMLP__SEEN_I) != 0;
        updates += a.op == PMLP_OP_U;
        for (; then <= now; then++) {
            const pmlp_action old = list->at[then];
            if (old.stage != stage) continue;
            if (old.op == PMLP_OP_F && old.microbatch >= backwards) break;
            updates_then += old.op == PMLP_OP_U;
        }
        oldest = pmlp__version_read(s, 0, updates_then, backwards);
        if (oldest <= updates && updates - oldest + 1 > most) most = updates - oldest + 1;
    }
    return (int)most;
}

/* --- builders --------------------------------------------------------------------------------- */

/* A builder writes one worker's list, knowing p, v, m and the worker's index r. What it writes is
   not trusted: the checker proves every schedule before the trainer runs it. All counters only
   ascend, so that gradients accumulate in the order of the samples. */

static const char *const pmlp__kind_names[PMLP_SCHEDULE_KIND_COUNT] = {
    "default",   "sequential", "gpipe", "1f1b", "eager-1f1b", "interleaved", "looped-bfs",
    "zb-h1",  "zb-h2",      "zb-v",  "dualpipe-v", "auto", "pipedream",   "pipedream-2bw"};

PMLP_API const char *pmlp_schedule_kind_name(pmlp_schedule_kind kind) {
    return pmlp__name(pmlp__kind_names, PMLP_SCHEDULE_KIND_COUNT, (int)kind);
}

PMLP_API pmlp_schedule_kind pmlp_schedule_kind_of(const char *name) {
    int kind;
    for (kind = PMLP_SCHEDULE_SEQUENTIAL; name && kind < PMLP_SCHEDULE_KIND_COUNT; kind++)
        if (strcmp(name, pmlp__kind_names[kind]) == 0) return (pmlp_schedule_kind)kind;
    return PMLP_SCHEDULE_DEFAULT;
}

static int pmlp__least(int a, int b) { return a < b ? a : b; }

/* One stage per worker. How many forwards worker r runs ahead of its first backward, and by how
   many micro-batches its W stay behind its I, is all in which these schedules differ. */
static int pmlp__warm_up(pmlp_schedule_kind kind, int p, int r, int m) {
    switch (kind) {
    case PMLP_SCHEDULE_SEQUENTIAL: return 0;
    case PMLP_SCHEDULE_GPIPE: return m;
    case PMLP_SCHEDULE_EAGER_1F1B:
    case PMLP_SCHEDULE_ZB_H2: return pmlp__least(m, 2 * (p - 1 - r));
    default: return pmlp__least(m, p - 1 - r);
    }
}

static int pmlp__w_delay(pmlp_schedule_kind kind, int r) {
    return kind == PMLP_SCHEDULE_ZB_H1 ? r : kind == PMLP_SCHEDULE_ZB_H2 ? 2 * r : 0;
}

static bool pmlp__is_zero_bubble(pmlp_schedule_kind kind) {
    return kind == PMLP_SCHEDULE_ZB_H1 || kind == PMLP_SCHEDULE_ZB_H2;
}

/* The backward of one micro-batch, and what follows from it: W that was put off, an update. */
static bool pmlp__emit_backward(pmlp_schedule *s, pmlp_schedule_kind kind, int r, int b) {
    const int w = b - pmlp__w_delay(kind, r);
    if (pmlp__is_zero_bubble(kind))
        return pmlp__emit(s, r, PMLP_OP_I, r, b) && (w < 0 || pmlp__emit(s, r, PMLP_OP_W, r, w));
    return pmlp__emit(s, r, PMLP_OP_B, r, b) &&
           (s->per_update == 0 || (b + 1) % s->per_update != 0 ||
            pmlp__emit(s, r, PMLP_OP_U, r, b));
}

/* Warm-up forwards, then one forward and one backward in turn, then the backwards that are left,
   then the W that are left. */
static bool pmlp__build_one_stage(pmlp_schedule *s, pmlp_schedule_kind kind, int r) {
    const int m = s->microbatches, ahead = pmlp__warm_up(kind, s->workers, r, m);
    const int delay = pmlp__least(m, pmlp__w_delay(kind, r));
    int f = 0, b = 0, w;
    bool ok = pmlp__reserve(s, r, 2 * m + 1);
    while (ok && f < ahead) ok = pmlp__emit(s, r, PMLP_OP_F, r, f++);
    while (ok && b < m) {
        if (f < m) ok = pmlp__emit(s, r, PMLP_OP_F, r, f++);
        ok = ok && pmlp__emit_backward(s, kind, r, b++);
    }
    for (w = m - delay; ok && w < m; w++) ok = pmlp__emit(s, r, PMLP_OP_W, r, w);
    return ok;
}

/* The k-th forward or backward of a worker with v chunks, of which each does g micro-batches before
   it is the next one's turn: forwards from the lowest chunk up, backwards from the highest down. */
static bool pmlp__emit_looped(pmlp_schedule *s, int r, pmlp_op op, int k, int g) {
    const int p = s->workers, v = s->stages / p, turn = k / g % v;
    const int chunk = op == PMLP_OP_F ? turn : v - 1 - turn;
    return pmlp__emit(s, r, op, chunk * p + r, k / (g * v) * g + k % g);
}

/* 1F1B over v stages per worker. */
static bool pmlp__build_interleaved(pmlp_schedule *s, int r) {
    const int p = s->workers, m = s->microbatches, v = s->stages / p, n = m * v;
    const int g = m / (m / p > 1 ? m / p : 1);
    const int ahead = pmlp__least((v - 1) * g + 2 * (p - 1 - r), n);
    int f = 0, b = 0;
    bool ok = true;
    while (ok && f < ahead) ok = pmlp__emit_looped(s, r, PMLP_OP_F, f++, g);
    while (ok && b < n) {
        if (f < n) ok = pmlp__emit_looped(s, r, PMLP_OP_F, f++, g);
        ok = ok && pmlp__emit_looped(s, r, PMLP_OP_B, b++, g);
    }
    return ok;
}

/* GPipe, one stage after the other: breadth first. */
static bool pmlp__build_looped(pmlp_schedule *s, int r) {
    const int p = s->workers, m = s->microbatches, v = s->stages / p;
    int chunk, i;
    bool ok = true;
    for (chunk = 0; chunk < v; chunk++)
        for (i = 0; ok && i < m; i++) ok = pmlp__emit(s, r, PMLP_OP_F, chunk * p + r, i);
    for (chunk = v - 1; chunk >= 0; chunk--)
        for (i = 0; ok && i < m; i++) ok = pmlp__emit(s, r, PMLP_OP_B, chunk * p + r, i);
    return ok;
}

/* A V: chunk 0 of worker r is stage r, chunk 1 is stage 2 p - 1 - r. The writer counts each chunk's
   micro-batches and drops what lies beyond the last one, so that the phases below can be written as
   if there were always enough of them. */
typedef struct pmlp__v_writer {
    pmlp_schedule *s;
    int r, next[2][PMLP_OP_COUNT]; /* micro-batch of the next F, I and W of each chunk */
    bool ok;
} pmlp__v_writer;

static void pmlp__v_emit(pmlp__v_writer *v, pmlp_op op, int chunk) {
    const int stage = chunk == 0 ? v->r : 2 * v->s->workers - 1 - v->r;
    const int i = v->next[chunk][op]++;
    if (v->ok && i < v->s->microbatches) v->ok = pmlp__emit(v->s, v->r, op, stage, i);
}

/* So many times the one, then, unless it is NONE, the other. */
static void pmlp__v_times(pmlp__v_writer *v, int times, pmlp_op first, int chunk, pmlp_op second,
                          int second_chunk) {
    for (; times > 0; times--) {
        pmlp__v_emit(v, first, chunk);
        if (second != PMLP_OP_NONE) pmlp__v_emit(v, second, second_chunk);
    }
}

/* ZB-V: forwards until the first comes back, then F I W of both chunks in turn, then the I, and W
   last. */
static bool pmlp__build_zb_v(pmlp_schedule *s, int r) {
    const int p = s->workers, m = s->microbatches, n = m > 2 * p - 1 ? m : 2 * p - 1;
    pmlp__v_writer v;
    int i;
    memset(&v, 0, sizeof v);
    v.s = s;
    v.r = r;
    v.ok = true;
    pmlp__v_times(&v, 2 * (p - r) - 1, PMLP_OP_F, 0, PMLP_OP_NONE, 0);
    pmlp__v_times(&v, r, PMLP_OP_F, 1, PMLP_OP_F, 0);
    for (i = 0; i < p - r; i++) {
        pmlp__v_emit(&v, PMLP_OP_F, 1);
        pmlp__v_times(&v, 1, PMLP_OP_I, 1, PMLP_OP_W, 1);
    }
    while (v.next[1][PMLP_OP_F] < v.next[0][PMLP_OP_F] || v.next[0][PMLP_OP_F] < n) {
        if (v.next[0][PMLP_OP_F] < n) pmlp__v_emit(&v, PMLP_OP_F, 0);
        pmlp__v_times(&v, 1, PMLP_OP_I, 0, PMLP_OP_W, 0);
        pmlp__v_emit(&v, PMLP_OP_F, 1);
        pmlp__v_times(&v, 1, PMLP_OP_I, 1, PMLP_OP_W, 1);
    }
    pmlp__v_times(&v, r, PMLP_OP_I, 0, PMLP_OP_I, 1);
    pmlp__v_times(&v, p - r, PMLP_OP_I, 0, PMLP_OP_W, 0);
    while (v.next[1][PMLP_OP_W] < v.next[1][PMLP_OP_I]) pmlp__v_emit(&v, PMLP_OP_W, 1);
    while (v.next[0][PMLP_OP_W] < v.next[0][PMLP_OP_I]) pmlp__v_emit(&v, PMLP_OP_W, 0);
    return v.ok;
}

/* A backward of DualPipeV: whole, or I with its W put off into a queue of both chunks. */
typedef struct pmlp__dual_writer {
    pmlp__v_writer v;
    int put_off, done; /* W so far */
} pmlp__dual_writer;

static void pmlp__dual_backward(pmlp__dual_writer *d, int chunk, bool split, char *queue) {
    pmlp__v_emit(&d->v, PMLP_OP_I, chunk);
    if (split) queue[d->put_off++] = (char)chunk;
    else pmlp__v_emit(&d->v, PMLP_OP_W, chunk);
}

static void pmlp__dual_w(pmlp__dual_writer *d, const char *queue) {
    if (d->done < d->put_off) pmlp__v_emit(&d->v, PMLP_OP_W, queue[d->done++]);
}

/* The eight phases. Where the paper computes a forward and a backward at once, they stand one after
   the other. queue [2 m]. */
static bool pmlp__build_dualpipe(pmlp_schedule *s, int r, char *queue) {
    const int p = s->workers, m = s->microbatches;
    pmlp__dual_writer d;
    int i;
    memset(&d, 0, sizeof d);
    d.v.s = s;
    d.v.r = r;
    d.v.ok = true;
    pmlp__v_times(&d.v, 2 * (p - r - 1), PMLP_OP_F, 0, PMLP_OP_NONE, 0);
    pmlp__v_times(&d.v, r + 1, PMLP_OP_F, 0, PMLP_OP_F, 1);
    for (i = 0; i < p - r - 1; i++) {
        pmlp__dual_backward(&d, 1, true, queue);
        pmlp__dual_w(&d, queue);
        pmlp__v_emit(&d.v, PMLP_OP_F, 1);
    }
    for (i = 0; i < m - 2 * p + r + 1; i++) {
        pmlp__v_emit(&d.v, PMLP_OP_F, 0);
        pmlp__dual_backward(&d, 1, false, queue);
        pmlp__v_emit(&d.v, PMLP_OP_F, 1);
        pmlp__dual_backward(&d, 0, false, queue);
    }
    for (i = 0; i < p - r - 1; i++) {
        pmlp__dual_backward(&d, 1, false, queue);
        pmlp__v_emit(&d.v, PMLP_OP_F, 1);
        pmlp__dual_backward(&d, 0, false, queue);
    }
    for (i = 0; i < 2 * (r + 1); i++)
        pmlp__dual_backward(&d, i % 2 == 0, i >= r + 1, queue);
    for (i = 0; i < p - r - 1; i++) {
        pmlp__dual_w(&d, queue);
        pmlp__dual_backward(&d, 0, true, queue);
    }
    while (d.done < d.put_off) pmlp__dual_w(&d, queue);
    return d.v.ok;
}

static bool pmlp__is_asynchronous(pmlp_schedule_kind kind) {
    return kind == PMLP_SCHEDULE_PIPEDREAM || kind == PMLP_SCHEDULE_PIPEDREAM_2BW;
}

/* What a kind demands of p, v, m. */
static pmlp_result pmlp__check_sizes(pmlp_schedule_kind kind, int p, int v, int m, int batches,
                                     pmlp_error *error) {
    const char *name = pmlp_schedule_kind_name(kind);
    const bool is_v = kind == PMLP_SCHEDULE_ZB_V || kind == PMLP_SCHEDULE_DUALPIPE_V;
    const bool loops = kind == PMLP_SCHEDULE_INTERLEAVED || kind == PMLP_SCHEDULE_LOOPED_BFS;
    const int rounds = m / p > 1 ? m / p : 1;
    if (is_v && v != 2)
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT,
                          "virtual_stages: %s has 2 stages per worker, not %d", name, v);
    if (!is_v && !loops && kind != PMLP_SCHEDULE_AUTO && v != 1)
        return pmlp__fail(
            error, PMLP_ERROR_ARGUMENT,
            "virtual_stages: %s has 1 stage per worker, not %d; interleaved takes more", name, v);
    if (kind == PMLP_SCHEDULE_INTERLEAVED && m % rounds != 0)
        return pmlp__fail(
            error, PMLP_ERROR_ARGUMENT,
            "microbatches: %d cannot be split into %d equal rounds for %d interleaved "
            "workers; %d can",
            m, rounds, p, m / rounds * rounds);
    if (kind == PMLP_SCHEDULE_DUALPIPE_V && m < 2 * p)
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT,
                          "microbatches: dualpipe-v with %d workers needs at least %d, not %d", p,
                          2 * p, m);
    if (kind == PMLP_SCHEDULE_PIPEDREAM_2BW && m < p)
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT,
                          "microbatches: pipedream-2bw with %d workers needs at least %d, not %d",
                          p, p, m);
    if (batches != 1 && !pmlp__is_asynchronous(kind))
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT,
                          "batches: %s ends with every batch; only asynchronous kinds go on", name);
    return PMLP_OK;
}

static int pmlp__default_virtual(pmlp_schedule_kind kind) {
    switch (kind) {
    case PMLP_SCHEDULE_INTERLEAVED:
    case PMLP_SCHEDULE_LOOPED_BFS:
    case PMLP_SCHEDULE_ZB_V:
    case PMLP_SCHEDULE_DUALPIPE_V: return 2;
    default: return 1;
    }
}

static pmlp_result pmlp__check_schedule_desc(const pmlp_schedule_desc *d, pmlp_error *error) {
    if (d->workers < 1 || d->workers > PMLP__MAX_WORKERS)
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "workers: %d is not in 1 .. %d", d->workers,
                          PMLP__MAX_WORKERS);
    if (d->virtual_stages < 1 || d->virtual_stages > PMLP__MAX_WORKERS / d->workers)
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "virtual_stages: %d is not in 1 .. %d",
                          d->virtual_stages, PMLP__MAX_WORKERS / d->workers);
    if (d->microbatches < 1 || d->microbatches > PMLP__MAX_MICROBATCHES)
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "microbatches: %d is not in 1 .. %d",
                          d->microbatches, PMLP__MAX_MICROBATCHES);
    if (d->batches < 1 || d->batches > PMLP__MAX_MICROBATCHES / d->microbatches)
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "batches: %d is not in 1 .. %d", d->batches,
                          PMLP__MAX_MICROBATCHES / d->microbatches);
    if ((double)d->microbatches * d->batches * d->virtual_stages > INT_MAX / 8)
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT,
                          "microbatches: %d in %d stages per worker are more actions than a list "
                          "can hold", d->microbatches, d->virtual_stages);
    if (pmlp__is_half(&d->allocator))
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "allocator: has only one of alloc and free");
    if ((int)d->kind < 0 || d->kind >= PMLP_SCHEDULE_KIND_COUNT)
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "kind: %d is no schedule", (int)d->kind);
    return pmlp__check_sizes(d->kind, d->workers, d->virtual_stages, d->microbatches, d->batches,
                             error);
}

/* One worker's list without the updates of a synchronous schedule. */
static bool pmlp__build_worker(pmlp_schedule *s, pmlp_schedule_kind kind, int r, char *queue) {
    switch (kind) {
    case PMLP_SCHEDULE_INTERLEAVED: return pmlp__build_interleaved(s, r);
    case PMLP_SCHEDULE_LOOPED_BFS: return pmlp__build_looped(s, r);
    case PMLP_SCHEDULE_ZB_V: return pmlp__build_zb_v(s, r);
    case PMLP_SCHEDULE_DUALPIPE_V: return pmlp__build_dualpipe(s, r, queue);
    default: return pmlp__build_one_stage(s, kind, r);
    }
}

static bool pmlp__add_updates(pmlp_schedule *s, int worker);

static pmlp_schedule *pmlp__build(const pmlp_schedule_desc *d) {
    const int p = d->workers, stages = p * d->virtual_stages;
    const bool is_v = d->kind == PMLP_SCHEDULE_ZB_V || d->kind == PMLP_SCHEDULE_DUALPIPE_V;
    pmlp_schedule *s =
        pmlp__schedule_new(&d->allocator, p, stages, d->microbatches * d->batches);
    char *queue = (char *)pmlp__new(&d->allocator, 2 * (size_t)d->microbatches, 1);
    bool ok = s && queue;
    int i;
    if (ok && d->kind == PMLP_SCHEDULE_PIPEDREAM) {
        s->per_update = 1;
        s->delay = -1;
    }
    if (ok && d->kind == PMLP_SCHEDULE_PIPEDREAM_2BW) {
        s->per_update = d->microbatches;
        s->delay = 1;
    }
    for (i = 0; ok && i < stages; i++)
        s->stage_worker[i] = is_v && i >= p ? 2 * p - 1 - i : i % p;
    for (i = 0; ok && i < p; i++)
        ok = pmlp__build_worker(s, d->kind, i, queue) && pmlp__add_updates(s, i);
    pmlp__delete(&d->allocator, queue);
    if (ok) return s;
    pmlp_schedule_destroy(s);
    return NULL;
}

static pmlp_result pmlp__build_auto(const pmlp_schedule_desc *desc, pmlp_schedule **schedule,
                                    pmlp_error *error);

PMLP_API pmlp_result pmlp_schedule_create(const pmlp_schedule_desc *desc, pmlp_schedule **schedule,
                                          pmlp_error *error) {
    pmlp_schedule_desc d;
    pmlp_result result;
    if (!schedule) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "schedule: is NULL");
    *schedule = NULL;
    if (!desc) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "desc: is NULL");
    d = *desc;
    if (!d.kind) d.kind = PMLP_SCHEDULE_1F1B;
    if (!d.workers) d.workers = 1;
    if (!d.virtual_stages) d.virtual_stages = pmlp__default_virtual(d.kind);
    if (!d.microbatches) d.microbatches = 1;
    if (!d.batches) d.batches = 1;
    result = pmlp__check_schedule_desc(&d, error);
    if (result != PMLP_OK) return result;
    if (d.kind == PMLP_SCHEDULE_AUTO) return pmlp__build_auto(&d, schedule, error);
    *schedule = pmlp__build(&d);
    return *schedule ? PMLP_OK : pmlp__no_memory(error, "a schedule");
}

PMLP_API pmlp_result pmlp_schedule_empty(int workers, int stages, int microbatches,
                                         const int *stage_worker, const pmlp_allocator *allocator,
                                         pmlp_schedule **schedule, pmlp_error *error) {
    const pmlp_allocator memory = pmlp__allocator_or_default(allocator);
    int stage, worker;
    if (!schedule) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "schedule: is NULL");
    *schedule = NULL;
    if (workers < 1 || workers > PMLP__MAX_WORKERS || stages < 1 || stages > PMLP__MAX_WORKERS ||
        microbatches < 1 || microbatches > PMLP__MAX_MICROBATCHES)
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT,
                          "%d workers, %d stages, %d micro-batches: one of them is out of range",
                          workers, stages, microbatches);
    if (!stage_worker) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "stage_worker: is NULL");
    for (stage = 0; stage < stages; stage++)
        if (stage_worker[stage] < 0 || stage_worker[stage] >= workers)
            return pmlp__fail(error, PMLP_ERROR_ARGUMENT,
                              "stage_worker: stage %d is on worker %d, which is not in 0 .. %d",
                              stage, stage_worker[stage], workers - 1);
    if (pmlp__is_half(&memory))
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "allocator: has only one of alloc and free");
    for (worker = 0; worker < workers; worker++) {
        for (stage = 0; stage < stages && stage_worker[stage] != worker; stage++) continue;
        if (stage == stages)
            return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "stage_worker: worker %d has no stage",
                              worker);
    }
    *schedule = pmlp__schedule_new(&memory, workers, stages, microbatches);
    if (!*schedule) return pmlp__no_memory(error, "a schedule");
    memcpy((*schedule)->stage_worker, stage_worker, (size_t)stages * sizeof *stage_worker);
    return PMLP_OK;
}

PMLP_API pmlp_result pmlp_schedule_append(pmlp_schedule *s, pmlp_op op, int stage, int microbatch,
                                          pmlp_error *error) {
    if (!s) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "schedule: is NULL");
    if (s->per_update)
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT,
                          "schedule: is asynchronous; only the builders write those");
    if (op <= PMLP_OP_NONE || op >= PMLP_OP_COUNT)
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "op: %d is none", (int)op);
    if (stage < 0 || stage >= s->stages)
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "stage: %d is not in 0 .. %d", stage,
                          s->stages - 1);
    if (op != PMLP_OP_U && (microbatch < 0 || microbatch >= s->microbatches))
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "microbatch: %d is not in 0 .. %d",
                          microbatch, s->microbatches - 1);
    if (((op == PMLP_OP_SEND_F || op == PMLP_OP_RECV_B) &&
         !pmlp__crosses(s, stage, stage + 1)) ||
        ((op == PMLP_OP_RECV_F || op == PMLP_OP_SEND_B) && !pmlp__crosses(s, stage, stage - 1)))
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT,
                          "stage: stage %d has no other worker there for a %s", stage,
                          pmlp_op_name(op));
    if (op == PMLP_OP_U) microbatch = -1;
    if (!pmlp__emit(s, s->stage_worker[stage], op, stage, microbatch))
        return pmlp__no_memory(error, "a schedule's actions");
    if (op >= PMLP_OP_SEND_F) s->lowered = true;
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
        return pmlp__parse_fail(p, from, to, "is a hand-off or the like; leave those out");
    default: return pmlp__parse_fail(p, from, to, "has no op F, I, W, B or U after the stage");
    }
    if (action->op != PMLP_OP_U &&
        !pmlp__parse_number(&at, to, PMLP__MAX_MICROBATCHES, &action->microbatch))
        return pmlp__parse_fail(p, from, to, "does not end with a micro-batch, as 0F1 does");
    if (action->op == PMLP_OP_U && at < to && *at >= '0' && *at <= '9')
        return pmlp__parse_fail(p, from, to,
                                "updates amid a batch; asynchronous schedules are built, not read");
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
    const pmlp__list *list = &s->lists[worker];
    int stage, i;
    for (stage = 0; s->per_update == 0 && stage < s->stages; stage++) {
        bool present = s->stage_worker[stage] != worker;
        for (i = 0; !present && i < list->count; i++)
            present = list->at[i].op == PMLP_OP_U && list->at[i].stage == stage;
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

/* Whether a stage has one update and something else, without which parsing would not know it. */
static bool pmlp__has_one_update(const pmlp__list *list, int stage) {
    int updates = 0, others = 0, i;
    for (i = 0; i < list->count; i++)
        if (list->at[i].stage == stage) *(list->at[i].op == PMLP_OP_U ? &updates : &others) += 1;
    return updates == 1 && others > 0;
}

/* End of a list without the updates that parsing would add again. */
static int pmlp__end_without_updates(const pmlp_schedule *s, int worker) {
    const pmlp__list *list = &s->lists[worker];
    int end = list->count, above = INT_MAX;
    while (s->per_update == 0 && end > 0 && list->at[end - 1].op == PMLP_OP_U &&
           list->at[end - 1].stage < above &&
           pmlp__has_one_update(list, list->at[end - 1].stage))
        above = list->at[--end].stage;
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
    int worker, i;
    if (!s || (!buffer && size > 0)) return PMLP_ERROR_ARGUMENT;
    text.buffer = buffer;
    text.size = size;
    text.length = 0;
    for (worker = 0; worker < s->workers; worker++) {
        const int end = pmlp__end_without_updates(s, worker);
        for (i = 0; i < end; i++) {
            if (i > 0) pmlp__put(&text, ",");
            pmlp__put_action(&text, s->lists[worker].at[i], true);
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
   how many slots each queue needs, is for the checker to say. */

/* Writes what an action becomes, four actions at most, and returns how many; with `whole` a B stays
   one. The lists of a lowered schedule are taken as they are. Every reader that needs hand-offs
   goes through here. */
static int pmlp__expand(const pmlp_schedule *s, pmlp_action a, bool whole, pmlp_action out[4]) {
    const bool forward = a.op == PMLP_OP_F, backward = a.op == PMLP_OP_I || a.op == PMLP_OP_B;
    int n = 0, i;
    for (i = 0; i < 4; i++) out[i] = a;
    if (s->lowered || (!forward && !backward)) return 1;
    if (forward && pmlp__crosses(s, a.stage, a.stage - 1)) out[n++].op = PMLP_OP_RECV_F;
    if (backward && pmlp__crosses(s, a.stage, a.stage + 1)) out[n++].op = PMLP_OP_RECV_B;
    out[n++].op = a.op == PMLP_OP_B && !whole ? PMLP_OP_I : a.op;
    if (forward && pmlp__crosses(s, a.stage, a.stage + 1)) out[n++].op = PMLP_OP_SEND_F;
    if (backward && pmlp__crosses(s, a.stage, a.stage - 1)) out[n++].op = PMLP_OP_SEND_B;
    if (a.op == PMLP_OP_B && !whole) out[n++].op = PMLP_OP_W;
    return n;
}

static bool pmlp__emit_expanded(const pmlp_schedule *s, pmlp_schedule *out, int worker,
                                pmlp_action a) {
    pmlp_action parts[4];
    const int n = pmlp__expand(s, a, false, parts);
    int i;
    for (i = 0; i < n; i++)
        if (!pmlp__emit(out, worker, parts[i].op, parts[i].stage, parts[i].microbatch))
            return false;
    return true;
}

/* All actions lowered, or only the forwards, in the order that training has them: what evaluation
   runs. NULL: no memory. */
static pmlp_schedule *pmlp__lowered(const pmlp_schedule *s, bool only_forwards) {
    pmlp_schedule *out = pmlp__schedule_like(s, &s->allocator);
    bool ok = out != NULL;
    int worker, i;
    for (worker = 0; ok && worker < s->workers; worker++)
        for (i = 0; ok && i < s->lists[worker].count; i++) {
            const pmlp_action a = s->lists[worker].at[i];
            const bool forward =
                a.op == PMLP_OP_F || a.op == PMLP_OP_SEND_F || a.op == PMLP_OP_RECV_F;
            if (forward || !only_forwards) ok = pmlp__emit_expanded(s, out, worker, a);
        }
    if (ok) {
        out->lowered = true;
        return out;
    }
    pmlp_schedule_destroy(out);
    return NULL;
}

PMLP_API pmlp_result pmlp_schedule_lower(const pmlp_schedule *s, pmlp_schedule **lowered,
                                         pmlp_error *error) {
    if (!lowered) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "lowered: is NULL");
    *lowered = NULL;
    if (!s) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "schedule: is NULL");
    if (s->lowered)
        return pmlp__fail(error, PMLP_ERROR_SCHEDULE, "the schedule has been lowered already");
    *lowered = pmlp__lowered(s, false);
    return *lowered ? PMLP_OK : pmlp__no_memory(error, "a lowered schedule");
}

/*============================================================================================*/
/* >>check: a proof that a schedule is right and cannot deadlock                              */
/*============================================================================================*/

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
    const double actions = (double)pmlp__action_count(s);
    if (cells <= 4.0 * actions + 4096.0) return false;
    pmlp__fail(error, PMLP_ERROR_SCHEDULE,
               "%.0f actions are far too few for %d stages and %d micro-batches: a stage needs "
               "every micro-batch from 0 on",
               actions, s->stages, s->microbatches);
    return true;
}

static pmlp_result pmlp__does_twice(pmlp_error *error, int worker, pmlp_action a) {
    return pmlp__check_fail(error, PMLP_ERROR_SCHEDULE, worker, a, "worker %d does %s twice",
                            worker, pmlp__action_label(a).text);
}

/* How many updates a stage has to do. */
static int pmlp__updates_due(const pmlp_schedule *s) {
    return s->per_update ? s->microbatches / s->per_update : 1;
}

/* Rule 1: nothing stands there twice. */
static pmlp_result pmlp__check_once(const pmlp_schedule *s, unsigned char *seen, int *updates,
                                    pmlp_error *error) {
    int worker, i;
    for (worker = 0; worker < s->workers; worker++)
        for (i = 0; i < s->lists[worker].count; i++) {
            const pmlp_action a = s->lists[worker].at[i];
            const unsigned bits = pmlp__seen_by(a.op);
            unsigned char *cell;
            if (a.op == PMLP_OP_U && ++updates[a.stage] > pmlp__updates_due(s))
                return pmlp__does_twice(error, worker, a);
            if (a.op == PMLP_OP_U) continue;
            cell = &seen[pmlp__cell(s, a.stage, a.microbatch)];
            if (*cell & bits) return pmlp__does_twice(error, worker, a);
            *cell |= (unsigned char)bits;
        }
    return PMLP_OK;
}

/* Rule 1: everything stands there. */
static pmlp_result pmlp__check_complete(const pmlp_schedule *s, const unsigned char *seen,
                                        const int *updates, pmlp_error *error) {
    static const pmlp_op needed[] = {PMLP_OP_F, PMLP_OP_I, PMLP_OP_W};
    int stage, i, n;
    for (stage = 0; stage < s->stages; stage++) {
        pmlp_action a = {PMLP_OP_U, stage, -1};
        const int worker = s->stage_worker[stage];
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
        if (updates[stage] < pmlp__updates_due(s))
            return pmlp__check_fail(error, PMLP_ERROR_SCHEDULE, worker, a,
                                    "worker %d never does %dU, %s update of stage %d", worker,
                                    stage, s->per_update ? "every" : "the", stage);
    }
    return PMLP_OK;
}

/* What a stage has done so far, in the walk over its worker's list. */
typedef struct pmlp__progress {
    int next_w;   /* micro-batch of the next W */
    int updates;
} pmlp__progress;

/* Rule 2 for one F, I, W or B. */
static pmlp_result pmlp__check_action(const pmlp_schedule *s, int worker, pmlp_action a,
                                      unsigned char *cell, pmlp__progress *p, pmlp_error *error) {
    const unsigned bits = pmlp__seen_by(a.op);
    const uint64_t version = pmlp__version_read(s, 0, (uint64_t)p->updates, a.microbatch);
    if ((bits & PMLP__SEEN_I) && !(*cell & PMLP__SEEN_F))
        return pmlp__check_fail(error, PMLP_ERROR_SCHEDULE, worker, a,
                                "worker %d does %s before %s", worker, pmlp__action_label(a).text,
                                pmlp__label_of(PMLP_OP_F, a.stage, a.microbatch).text);
    if (a.op == PMLP_OP_W && !(*cell & PMLP__SEEN_I))
        return pmlp__check_fail(error, PMLP_ERROR_SCHEDULE, worker, a,
                                "worker %d does %s before %s", worker, pmlp__action_label(a).text,
                                pmlp__label_of(PMLP_OP_I, a.stage, a.microbatch).text);
    if (a.op == PMLP_OP_F && version > (uint64_t)p->updates)
        return pmlp__check_fail(error, PMLP_ERROR_SCHEDULE, worker, a,
                                "worker %d does %s, which reads the weights of update %d, after %d",
                                worker, pmlp__action_label(a).text, (int)version, p->updates);
    if ((bits & PMLP__SEEN_W) && a.microbatch != p->next_w)
        return pmlp__check_fail(
            error, PMLP_ERROR_SCHEDULE, worker, a,
            "worker %d does %s before %s: gradients accumulate in ascending order", worker,
            pmlp__action_label(a).text, pmlp__label_of(a.op, a.stage, p->next_w).text);
    if ((bits & PMLP__SEEN_W) && s->per_update && a.microbatch / s->per_update > p->updates)
        return pmlp__check_fail(error, PMLP_ERROR_SCHEDULE, worker, a,
                                "worker %d does %s before the update that ends at micro-batch %d",
                                worker, pmlp__action_label(a).text,
                                (p->updates + 1) * s->per_update - 1);
    if (bits & PMLP__SEEN_W) p->next_w++;
    *cell |= (unsigned char)bits;
    return PMLP_OK;
}

/* Rule 2 for one U: it has the gradients that it takes. */
static pmlp_result pmlp__check_update(const pmlp_schedule *s, int worker, pmlp_action a,
                                      pmlp__progress *p, pmlp_error *error) {
    const int needed = s->per_update ? (p->updates + 1) * s->per_update : s->microbatches;
    if (p->next_w < needed)
        return pmlp__check_fail(error, PMLP_ERROR_SCHEDULE, worker, a,
                                "worker %d does %s before it has the gradient of micro-batch %d "
                                "(%s)", worker, pmlp__action_label(a).text, p->next_w,
                                pmlp__label_of(PMLP_OP_W, a.stage, p->next_w).text);
    if (s->per_update && a.microbatch != needed - 1)
        return pmlp__check_fail(error, PMLP_ERROR_SCHEDULE, worker, a,
                                "worker %d does %s where the update after micro-batch %d is due",
                                worker, pmlp__action_label(a).text, needed - 1);
    p->updates++;
    return PMLP_OK;
}

/* Rule 2: each worker's own order. seen and progress [stages] are all zero at first. */
static pmlp_result pmlp__check_order(const pmlp_schedule *s, unsigned char *seen,
                                     pmlp__progress *progress, pmlp_error *error) {
    int worker, updated, i;
    for (worker = 0; worker < s->workers; worker++)
        for (updated = -1, i = 0; i < s->lists[worker].count; i++) {
            const pmlp_action a = s->lists[worker].at[i];
            pmlp_result result;
            if (a.op == PMLP_OP_U) {
                updated = a.stage;
                result = pmlp__check_update(s, worker, a, &progress[a.stage], error);
            } else if (a.op >= PMLP_OP_SEND_F) {
                continue; /* the replay looks at these */
            } else if ((pmlp__seen_by(a.op) & PMLP__SEEN_W) && updated >= 0 && !s->per_update) {
                result = pmlp__check_fail(
                    error, PMLP_ERROR_SCHEDULE, worker, a,
                    "worker %d does %dU before %s: updates wait for the gradients of every stage",
                    worker, updated, pmlp__action_label(a).text);
            } else {
                result = pmlp__check_action(s, worker, a,
                                            &seen[pmlp__cell(s, a.stage, a.microbatch)],
                                            &progress[a.stage], error);
            }
            if (result != PMLP_OK) return result;
        }
    return PMLP_OK;
}

/* Rules 1 and 2, and the room that both need. */
static pmlp_result pmlp__check_lists(const pmlp_schedule *s, pmlp_error *error) {
    const size_t cells = (size_t)s->stages * (size_t)s->microbatches;
    unsigned char *seen;
    pmlp__progress *progress;
    int *updates;
    pmlp_result result;
    if (pmlp__is_sparse(s, error)) return PMLP_ERROR_SCHEDULE;
    seen = (unsigned char *)pmlp__new(&s->allocator, cells, 1);
    progress =
        (pmlp__progress *)pmlp__new(&s->allocator, (size_t)s->stages, sizeof *progress);
    updates = (int *)pmlp__new(&s->allocator, (size_t)s->stages, sizeof *updates);
    if (seen && progress && updates) {
        result = pmlp__check_once(s, seen, updates, error);
        if (result == PMLP_OK) result = pmlp__check_complete(s, seen, updates, error);
        memset(seen, 0, cells);
        if (result == PMLP_OK) result = pmlp__check_order(s, seen, progress, error);
    } else {
        result = pmlp__no_memory(error, "checking a schedule");
    }
    pmlp__delete(&s->allocator, seen);
    pmlp__delete(&s->allocator, progress);
    pmlp__delete(&s->allocator, updates);
    return result;
}

/* Most micro-batches whose activations the worker holds at once. */
static int pmlp__peak(const pmlp_schedule *s, int worker) {
    const pmlp__list *list = &s->lists[worker];
    int held = 0, peak = 0, i;
    for (i = 0; i < list->count; i++) {
        if (list->at[i].op == PMLP_OP_F && ++held > peak) peak = held;
        held -= (pmlp__seen_by(list->at[i].op) & PMLP__SEEN_W) != 0;
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
    int at;
    if (r->queued[worker]) return;
    r->queued[worker] = true;
    at = r->head + r->count++;
    r->queue[at < r->workers ? at : at - r->workers] = worker;
}

static void pmlp__ready_add_all(pmlp__ready *r) {
    int i;
    for (i = 0; i < r->workers; i++) pmlp__ready_add(r, i);
}

static int pmlp__ready_take(pmlp__ready *r) {
    const int worker = r->queue[r->head];
    r->head = (r->head + 1) % r->workers;
    r->count--;
    r->queued[worker] = false;
    return worker;
}

static bool pmlp__ready_init(pmlp__ready *r, const pmlp_allocator *allocator, int workers) {
    memset(r, 0, sizeof *r);
    r->workers = workers;
    r->queue = (int *)pmlp__new(allocator, (size_t)workers, sizeof *r->queue);
    r->queued = (bool *)pmlp__new(allocator, (size_t)workers, sizeof *r->queued);
    if (r->queue && r->queued) pmlp__ready_add_all(r);
    return r->queue && r->queued;
}

static void pmlp__ready_done(pmlp__ready *r, const pmlp_allocator *allocator) {
    pmlp__delete(allocator, r->queue);
    pmlp__delete(allocator, r->queued);
}

/* --- replay: runs the lists without computing ------------------------------------------------- */

/* Channel number of the message that an action sends or receives: 2 s for activations from stage s
   to s + 1, 2 s + 1 for gradients from stage s + 1 to s. */
static int pmlp__edge_of(pmlp_action a) {
    switch (a.op) {
    case PMLP_OP_SEND_F: return 2 * a.stage;
    case PMLP_OP_RECV_F: return 2 * (a.stage - 1);
    case PMLP_OP_SEND_B: return 2 * (a.stage - 1) + 1;
    case PMLP_OP_RECV_B: return 2 * a.stage + 1;
    default: return -1;
    }
}

/* One walk over a worker's list, hand-offs written out: action `next`, part `part` of what it
   becomes. */
typedef struct pmlp__cursor {
    int next, part;
} pmlp__cursor;

/* A transport is three things: how many messages a queue holds that nobody has asked for yet (none
   at all makes sender and receiver meet), whether hand-offs that stand together begin together, and
   which channels share a queue. Everything else is the same: a worker asks for all hand-offs of a
   group, of one if they are not grouped, then goes on when each of them is done. A SEND is done
   when no more than `slots` messages are ahead of what its receiver has asked for; a RECV when as
   many messages were offered as it has asked for. */
typedef struct pmlp__replay {
    const pmlp_schedule *s;
    const int *slots;          /* [2 stages], by queue */
    bool grouped, whole;       /* whole: a B is not split */
    const int *queue_of;       /* [2 stages]: by channel; NULL: each has its own */
    pmlp__cursor *at;          /* [workers]: the next part */
    int *asked;                /* [workers]: hand-offs asked for that begin there */
    int *offered, *wanted;     /* [2 stages]: SENDs and RECVs asked for so far, by queue */
    size_t *first;             /* [2 stages]: where a queue's messages are in `message` */
    uint32_t *message;         /* who was first to ask, sender or receiver, writes which it is */
    unsigned char *seen;       /* [stages][m] */
    int64_t weights_left;      /* W still to come, of all stages: a synchronous U waits for 0 */
    pmlp__ready ready;
} pmlp__replay;

static void pmlp__replay_done(pmlp__replay *p) {
    const pmlp_allocator *allocator = &p->s->allocator;
    pmlp__delete(allocator, p->at);
    pmlp__delete(allocator, p->asked);
    pmlp__delete(allocator, p->offered);
    pmlp__delete(allocator, p->wanted);
    pmlp__delete(allocator, p->first);
    pmlp__delete(allocator, p->message);
    pmlp__delete(allocator, p->seen);
    pmlp__ready_done(&p->ready, allocator);
}

static int pmlp__queue_of(const pmlp__replay *p, pmlp_action a) {
    const int edge = pmlp__edge_of(a);
    return p->queue_of ? p->queue_of[edge] : edge;
}

/* p->s, slots, grouped, queue_of are set. */
static bool pmlp__replay_init(pmlp__replay *p, bool with_updates) {
    const pmlp_schedule *s = p->s;
    const pmlp_allocator *allocator = &s->allocator;
    const size_t edges = 2 * (size_t)s->stages, m = (size_t)s->microbatches;
    const size_t workers = (size_t)s->workers;
    size_t total = 0;
    int i, edge;
    p->weights_left = with_updates && !s->per_update ? (int64_t)s->stages * s->microbatches : 0;
    p->at = (pmlp__cursor *)pmlp__new(allocator, workers, sizeof *p->at);
    p->asked = (int *)pmlp__new(allocator, workers, sizeof *p->asked);
    p->offered = (int *)pmlp__new(allocator, edges, sizeof *p->offered);
    p->wanted = (int *)pmlp__new(allocator, edges, sizeof *p->wanted);
    p->first = (size_t *)pmlp__new(allocator, edges, sizeof *p->first);
    p->message = edges * m > UINT32_MAX
                     ? NULL
                     : (uint32_t *)pmlp__new(allocator, edges * m, sizeof *p->message);
    p->seen = (unsigned char *)pmlp__new(allocator, (size_t)s->stages * m, 1);
    if (!pmlp__ready_init(&p->ready, allocator, s->workers) || !p->at || !p->asked ||
        !p->offered || !p->wanted || !p->first || !p->message || !p->seen) {
        pmlp__replay_done(p);
        return false;
    }
    for (i = 0; i < 2 * s->stages; i++) /* a queue gets room for all channels that share it */
        for (p->first[i] = total, edge = 0; edge < (p->queue_of ? 2 * s->stages : 1); edge++)
            if (!p->queue_of || p->queue_of[edge] == i) total += m;
    return true;
}

/* The worker at the other end of a SEND's or RECV's edge. */
static int pmlp__peer(const pmlp_schedule *s, pmlp_action a) {
    const bool up = a.op == PMLP_OP_SEND_F || a.op == PMLP_OP_RECV_B;
    return s->stage_worker[up ? a.stage + 1 : a.stage - 1];
}

/* The part at a cursor; false at the end of the list. */
static bool pmlp__cursor_get(const pmlp__replay *p, int worker, pmlp__cursor c, pmlp_action *a) {
    pmlp_action parts[4];
    if (c.next >= p->s->lists[worker].count) return false;
    pmlp__expand(p->s, p->s->lists[worker].at[c.next], p->whole, parts);
    *a = parts[c.part];
    return true;
}

static void pmlp__cursor_step(const pmlp__replay *p, int worker, pmlp__cursor *c) {
    pmlp_action parts[4];
    if (++c->part < pmlp__expand(p->s, p->s->lists[worker].at[c->next], p->whole, parts)) return;
    c->part = 0;
    c->next++;
}

/* The other end found another message at this place of the queue than it wants. */
static pmlp_result pmlp__mixed_up(const pmlp__replay *p, int worker, pmlp_action a, uint32_t other,
                                  pmlp_error *error) {
    const uint32_t m = (uint32_t)p->s->microbatches;
    const int edge = (int)(other / m), stage = edge % 2 ? edge / 2 + 1 : edge / 2;
    const bool sends = pmlp__is_send(a.op);
    return pmlp__check_fail(
        error, PMLP_ERROR_SCHEDULE, worker, a,
        "worker %d %s micro-batch %d in %s, but worker %d %s %s(%d) of stage %d "
        "first",
        worker, sends ? "offers" : "expects", a.microbatch, pmlp__action_label(a).text,
        pmlp__peer(p->s, a), sends ? "expects" : "hands over", edge % 2 ? "B" : "F",
        (int)(other % m), stage);
}

/* Asks for one hand-off. */
static pmlp_result pmlp__ask(pmlp__replay *p, int worker, pmlp_action a, pmlp_error *error) {
    const int queue = pmlp__queue_of(p, a);
    const bool sends = pmlp__is_send(a.op);
    int *mine = sends ? &p->offered[queue] : &p->wanted[queue];
    const int theirs = sends ? p->wanted[queue] : p->offered[queue];
    const uint32_t self =
        (uint32_t)pmlp__edge_of(a) * (uint32_t)p->s->microbatches + (uint32_t)a.microbatch;
    uint32_t *message = &p->message[p->first[queue] + (size_t)*mine];
    if (sends && !(p->seen[pmlp__cell(p->s, a.stage, a.microbatch)] &
                   (a.op == PMLP_OP_SEND_F ? PMLP__SEEN_F : PMLP__SEEN_I)))
        return pmlp__check_fail(error, PMLP_ERROR_SCHEDULE, worker, a,
                                "worker %d does %s before it has computed that", worker,
                                pmlp__action_label(a).text);
    if (*mine >= theirs) *message = self;
    else if (*message != self) return pmlp__mixed_up(p, worker, a, *message, error);
    ++*mine;
    pmlp__ready_add(&p->ready, pmlp__peer(p->s, a));
    return PMLP_OK;
}

static bool pmlp__is_done(const pmlp__replay *p, pmlp_action a) {
    const int queue = pmlp__queue_of(p, a);
    return pmlp__is_send(a.op) ? p->offered[queue] - p->wanted[queue] <= p->slots[queue]
                               : p->offered[queue] >= p->wanted[queue];
}

/* Asks for the hand-off at the worker's cursor, and for those that stand behind it if they are
   grouped. */
static pmlp_result pmlp__ask_group(pmlp__replay *p, int worker, pmlp_action a, pmlp_error *error) {
    pmlp__cursor c = p->at[worker];
    pmlp_result result;
    do {
        result = pmlp__ask(p, worker, a, error);
        p->asked[worker]++;
        if (result != PMLP_OK || !p->grouped) return result;
        pmlp__cursor_step(p, worker, &c);
    } while (pmlp__cursor_get(p, worker, c, &a) && a.op >= PMLP_OP_SEND_F);
    return PMLP_OK;
}

/* A hand-off. That all of a group are done is the same as that one after the other is. PMLP_BUSY:
   this one is not. */
static pmlp_result pmlp__replay_handoff(pmlp__replay *p, int worker, pmlp_action a,
                                        pmlp_error *error) {
    if (p->asked[worker] == 0) {
        const pmlp_result result = pmlp__ask_group(p, worker, a, error);
        if (result != PMLP_OK) return result;
    }
    if (!pmlp__is_done(p, a)) return PMLP_BUSY;
    p->asked[worker]--;
    p->seen[pmlp__cell(p->s, a.stage, a.microbatch)] |= (unsigned char)pmlp__seen_by(a.op);
    return PMLP_OK;
}

/* What F and I need from the neighbour stage: on another worker it must have been received, on the
   same one it must have been computed. */
static pmlp_result pmlp__replay_needs(const pmlp__replay *p, int worker, pmlp_action a,
                                      pmlp_error *error) {
    const pmlp_schedule *s = p->s;
    const bool forward = a.op == PMLP_OP_F;
    const int from = forward ? a.stage - 1 : a.stage + 1;
    if ((!forward && !(pmlp__seen_by(a.op) & PMLP__SEEN_I)) || from < 0 || from >= s->stages)
        return PMLP_OK;
    if (pmlp__crosses(s, a.stage, from)) {
        if (p->seen[pmlp__cell(s, a.stage, a.microbatch)] &
            (forward ? PMLP__SEEN_RECV_F : PMLP__SEEN_RECV_B))
            return PMLP_OK;
        return pmlp__check_fail(error, PMLP_ERROR_SCHEDULE, worker, a,
                                "worker %d does %s before %d%s%d", worker,
                                pmlp__action_label(a).text, a.stage,
                                forward ? "RECV_F" : "RECV_B", a.microbatch);
    }
    if (p->seen[pmlp__cell(s, from, a.microbatch)] & (forward ? PMLP__SEEN_F : PMLP__SEEN_I))
        return PMLP_OK;
    if (forward)
        return pmlp__check_fail(error, PMLP_ERROR_SCHEDULE, worker, a,
                                "worker %d does %s before %s", worker, pmlp__action_label(a).text,
                                pmlp__label_of(a.op, from, a.microbatch).text);
    return pmlp__check_fail(error, PMLP_ERROR_SCHEDULE, worker, a,
                            "worker %d does the backward of %s before that of %s", worker,
                            pmlp__label_of(PMLP_OP_B, a.stage, a.microbatch).text,
                            pmlp__label_of(PMLP_OP_B, from, a.microbatch).text);
}

/* F, I, W, B or U, if it can be done. PMLP_BUSY: it must wait. */
static pmlp_result pmlp__replay_compute(pmlp__replay *p, int worker, pmlp_action a,
                                        pmlp_error *error) {
    pmlp_result result;
    if (a.op == PMLP_OP_U) return p->weights_left > 0 ? PMLP_BUSY : PMLP_OK;
    result = pmlp__replay_needs(p, worker, a, error);
    if (result != PMLP_OK) return result;
    p->seen[pmlp__cell(p->s, a.stage, a.microbatch)] |= (unsigned char)pmlp__seen_by(a.op);
    if ((pmlp__seen_by(a.op) & PMLP__SEEN_W) && --p->weights_left == 0)
        pmlp__ready_add_all(&p->ready);
    return PMLP_OK;
}

/* One worker until it has to wait (PMLP_BUSY) or is at the end of its list. */
static pmlp_result pmlp__replay_worker(pmlp__replay *p, int worker, pmlp_error *error) {
    const pmlp__list *list = &p->s->lists[worker];
    pmlp__cursor *at = &p->at[worker];
    pmlp_action parts[4];
    for (; at->next < list->count; at->next++, at->part = 0) {
        const int n = pmlp__expand(p->s, list->at[at->next], p->whole, parts);
        for (; at->part < n; at->part++) {
            const pmlp_action a = parts[at->part];
            const pmlp_result result = a.op >= PMLP_OP_SEND_F
                                           ? pmlp__replay_handoff(p, worker, a, error)
                                           : pmlp__replay_compute(p, worker, a, error);
            if (result != PMLP_OK) return result;
        }
    }
    return PMLP_OK;
}

/* Which worker a stuck one waits for, and why, as a clause that follows "waits ". */
static int pmlp__waits_for(const pmlp__replay *p, int worker, pmlp__text *text) {
    const pmlp_schedule *s = p->s;
    pmlp_action a = {PMLP_OP_NONE, 0, 0}, next;
    int other = 0;
    bool sends;
    pmlp__cursor_get(p, worker, p->at[worker], &a);
    if (a.op == PMLP_OP_U) { /* anybody who has not come to an update either */
        while (other < s->workers - 1 &&
               (other == worker || !pmlp__cursor_get(p, other, p->at[other], &next) ||
                next.op == PMLP_OP_U))
            other++;
        pmlp__put(text, "with %dU for the gradients of worker %d", a.stage, other);
        return other;
    }
    other = pmlp__peer(s, a);
    sends = pmlp__is_send(a.op);
    if (sends) pmlp__put(text, "for worker %d to take ", other);
    else pmlp__put(text, "for ");
    pmlp__put(text, "%s(%d) of stage %d",
              a.op == PMLP_OP_SEND_F || a.op == PMLP_OP_RECV_F ? "F" : "B", a.microbatch,
              sends ? a.stage : a.op == PMLP_OP_RECV_F ? a.stage - 1 : a.stage + 1);
    if (!sends) pmlp__put(text, " from worker %d", other);
    return other;
}

/* Follows who waits for whom from the first stuck worker until somebody comes up again, then prints
   that circle. There is one: nobody can go on, and each waits for one that has not finished. */
static pmlp_result pmlp__report_deadlock(const pmlp__replay *p, pmlp_error *error) {
    const pmlp_schedule *s = p->s;
    char message[sizeof error->text];
    pmlp__text text, nowhere;
    pmlp_action a = {PMLP_OP_NONE, -1, -1};
    int worker = 0, first, i;
    memset(&nowhere, 0, sizeof nowhere);
    while (worker < s->workers && p->at[worker].next == s->lists[worker].count) worker++;
    for (i = 0; i < s->workers; i++) {
        /* whoever is waited for and has finished never does what is missing: no circle, but a
           lack */
        const int other = pmlp__waits_for(p, worker, &nowhere);
        if (p->at[other].next == s->lists[other].count) break;
        worker = other;
    }
    text.buffer = message;
    text.size = sizeof message;
    text.length = 0;
    first = worker;
    pmlp__put(&text, "deadlock: worker %d waits ", worker);
    do {
        if (worker != first) pmlp__put(&text, ", which waits ");
        worker = pmlp__waits_for(p, worker, &text);
    } while (worker != first && p->at[worker].next < s->lists[worker].count &&
             text.length < text.size);
    if (worker != first && text.length < text.size) pmlp__put(&text, ", which has finished");
    pmlp__text_end(&text, NULL);
    pmlp__cursor_get(p, first, p->at[first], &a);
    return pmlp__check_fail(error, PMLP_ERROR_DEADLOCK, first, a, "%s", message);
}

/* Rule 3: with this transport everybody reaches the end of the list. p->s, slots, grouped and
   queue_of are set, everything else is 0. done [workers] may be NULL. */
static pmlp_result pmlp__replay_run(pmlp__replay *p, bool with_updates, int *done,
                                    pmlp_error *error) {
    const pmlp_schedule *s = p->s;
    pmlp_result result = PMLP_OK;
    int worker, stuck = 0;
    if (!pmlp__replay_init(p, with_updates)) return pmlp__no_memory(error, "checking a schedule");
    while (p->ready.count > 0 && (result == PMLP_OK || result == PMLP_BUSY))
        result = pmlp__replay_worker(p, pmlp__ready_take(&p->ready), error);
    if (result == PMLP_BUSY) result = PMLP_OK;
    for (worker = 0; worker < s->workers; worker++) {
        stuck += p->at[worker].next < s->lists[worker].count;
        if (done) done[worker] = p->at[worker].next;
    }
    if (result == PMLP_OK && stuck > 0) result = pmlp__report_deadlock(p, error);
    pmlp__replay_done(p);
    return result;
}

/* With queues of the given lengths. */
static pmlp_result pmlp__replay_slots(const pmlp_schedule *s, const int *slots, bool with_updates,
                                      pmlp_error *error) {
    pmlp__replay p;
    memset(&p, 0, sizeof p);
    p.s = s;
    p.slots = slots;
    return pmlp__replay_run(&p, with_updates, NULL, error);
}

/* The same with one number of slots for all edges. */
static pmlp_result pmlp__replay_with(const pmlp_schedule *s, int *slots, int number,
                                     bool with_updates, pmlp_error *error) {
    int edge;
    for (edge = 0; edge < 2 * s->stages; edge++) slots[edge] = number;
    return pmlp__replay_slots(s, slots, with_updates, error);
}

/* Fewest slots per edge: the smallest number that serves all edges, then each edge by itself as few
   as the others, already lowered, allow. Most schedules need one, so that is tried first. slots is
   [2 stages]; on success it holds the result. */
static pmlp_result pmlp__fewest_slots(const pmlp_schedule *s, bool each, int *slots,
                                      pmlp_error *error) {
    const int edges = 2 * (s->stages - 1);
    int low = 2, high = 1, edge;
    pmlp_result result = pmlp__replay_with(s, slots, 1, true, NULL);
    if (result == PMLP_ERROR_MEMORY) return pmlp__no_memory(error, "checking a schedule");
    if (result != PMLP_OK) {
        high = s->microbatches;
        result = pmlp__replay_with(s, slots, high, true, error);
        if (result != PMLP_OK) return result; /* not even with room for everything */
    }
    while (low < high) {
        const int middle = low + (high - low) / 2;
        result = pmlp__replay_with(s, slots, middle, true, NULL);
        if (result == PMLP_OK) high = middle;
        else if (result == PMLP_ERROR_DEADLOCK) low = middle + 1;
        else return pmlp__no_memory(error, "checking a schedule");
    }
    for (edge = 0; edge < edges; edge++) slots[edge] = high;
    for (edge = 0; each && edge < edges; edge++)
        while (slots[edge] > 1) {
            slots[edge]--;
            result = pmlp__replay_slots(s, slots, true, NULL);
            if (result == PMLP_OK) continue;
            slots[edge]++;
            if (result != PMLP_ERROR_DEADLOCK) return pmlp__no_memory(error, "checking a schedule");
            break;
        }
    return PMLP_OK;
}

static void pmlp__fill_report(const pmlp_schedule *s, const int *slots, pmlp_check *report) {
    int i;
    report->peak = report->slots = 0;
    report->versions = 1;
    for (i = 0; i < s->workers; i++) {
        const int peak = pmlp__peak(s, i);
        if (peak > report->peak) report->peak = peak;
        if (report->peaks) report->peaks[i] = peak;
    }
    for (i = 0; i < s->stages; i++) {
        const int versions = pmlp_schedule_versions(s, i);
        if (versions > report->versions) report->versions = versions;
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
    int *per_edge;
    pmlp_result result;
    if (!s) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "schedule: is NULL");
    if (slots < 0) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "slots: %d is negative", slots);
    result = pmlp__check_lists(s, error);
    if (result != PMLP_OK) return result;
    per_edge = (int *)pmlp__new(&s->allocator, 2 * (size_t)s->stages, sizeof *per_edge);
    if (!per_edge) return pmlp__no_memory(error, "checking a schedule");
    result = slots == 0 ? pmlp__fewest_slots(s, each, per_edge, error)
                        : pmlp__replay_with(s, per_edge, slots, true, error);
    if (result == PMLP_OK && report) pmlp__fill_report(s, per_edge, report);
    pmlp__delete(&s->allocator, per_edge);
    return result;
}

PMLP_API const char *pmlp_transport_name(pmlp_transport transport) {
    static const char *const names[] = {"default", "slots", "unbounded", "rendezvous", "grouped",
                                        "pair"};
    return pmlp__name(names, PMLP_TRANSPORT_COUNT, (int)transport);
}

/* queue_of [2 stages]: all channels from one worker to another share the first one's queue. */
static void pmlp__share_queues(const pmlp_schedule *s, int *queue_of) {
    const int channels = 2 * (s->stages - 1);
    int i, j;
    for (i = 0; i < 2 * s->stages; i++) queue_of[i] = i;
    for (i = 0; i < channels; i++)
        for (j = 0; j < i; j++)
            if (s->stage_worker[i / 2 + i % 2] == s->stage_worker[j / 2 + j % 2] &&
                s->stage_worker[i / 2 + 1 - i % 2] == s->stage_worker[j / 2 + 1 - j % 2]) {
                queue_of[i] = j;
                break;
            }
}

PMLP_API pmlp_result pmlp_schedule_replay(const pmlp_schedule *s, pmlp_transport transport,
                                          int slots, int *done, pmlp_error *error) {
    pmlp__replay p;
    int *per_edge, *queue_of, i;
    pmlp_result result;
    if (!s) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "schedule: is NULL");
    for (i = 0; done && i < s->workers; i++) done[i] = 0;
    if ((int)transport < 0 || transport >= PMLP_TRANSPORT_COUNT)
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "transport: %d is none", (int)transport);
    if (slots < 0) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "slots: %d is negative", slots);
    if (!transport) transport = PMLP_TRANSPORT_SLOTS;
    result = pmlp__check_lists(s, error);
    if (result != PMLP_OK) return result;
    per_edge = (int *)pmlp__new(&s->allocator, 2 * (size_t)s->stages, sizeof *per_edge);
    queue_of = (int *)pmlp__new(&s->allocator, 2 * (size_t)s->stages, sizeof *queue_of);
    if (per_edge && queue_of) {
        memset(&p, 0, sizeof p);
        p.s = s;
        p.slots = per_edge;
        p.grouped = transport == PMLP_TRANSPORT_GROUPED;
        p.whole = true;
        for (i = 0; i < 2 * s->stages; i++)
            per_edge[i] = transport == PMLP_TRANSPORT_SLOTS ? (slots ? slots : 1)
                          : transport == PMLP_TRANSPORT_RENDEZVOUS || p.grouped ? 0
                                                                                 : INT_MAX;
        if (transport == PMLP_TRANSPORT_PAIR) {
            pmlp__share_queues(s, queue_of);
            p.queue_of = queue_of;
        }
        result = pmlp__replay_run(&p, true, done, error);
    } else {
        result = pmlp__no_memory(error, "checking a schedule");
    }
    pmlp__delete(&s->allocator, per_edge);
    pmlp__delete(&s->allocator, queue_of);
    return result;
}

/*============================================================================================*/
/* >>simulate: how long a schedule takes                                                      */
/*============================================================================================*/

/* Time in a simulation: an action begins when its worker is free and what it needs is there,
   whichever is later, and ends its cost later. That is all; makespan and bubble follow. */
typedef struct pmlp__simulator {
    const pmlp_schedule *s;
    pmlp_costs costs;
    double *clock;         /* [workers] */
    double *f_end, *i_end; /* [stages][m]: when the result is there, -1 while it is not */
    double *begin;         /* [actions], worker by worker */
    size_t *first;         /* [workers]: where a worker's are */
    int *next;             /* [workers] */
    size_t *rank, ranked;  /* [actions]: in which order they were simulated, after all that they
                              need; NULL if nobody wants to know */
    int64_t weights_left;
    double weights_end; /* when the last W so far ended: synchronous updates begin no earlier */
    int *f_done, *ahead; /* [stages]: F so far; and how many of them have been begun ahead */
    pmlp__ready ready;
} pmlp__simulator;

/* Sums of what is allowed stay finite. */
static bool pmlp__bad_cost(double cost) { return !(cost >= 0.0 && cost <= 1e100); }

static bool pmlp__bad_costs(int stages, const pmlp_costs *c) {
    const double *of_stages[7];
    int n, stage;
    if (c->stages && c->stages != stages) return true;
    of_stages[0] = c->f;
    of_stages[1] = c->i;
    of_stages[2] = c->w;
    of_stages[3] = c->u;
    of_stages[4] = c->held;
    of_stages[5] = c->ahead;
    of_stages[6] = c->message_bytes;
    for (n = 0; n < 7; n++)
        for (stage = 0; of_stages[n] && stage < (n < 6 ? stages : stages - 1); stage++)
            if (pmlp__bad_cost(of_stages[n][stage])) return true;
    for (stage = 0; c->ahead && stage < stages; stage++)
        if (c->ahead[stage] > (c->f ? c->f[stage] : 1.0)) return true;
    return pmlp__bad_cost(c->latency) || pmlp__bad_cost(c->per_byte);
}

static void pmlp__simulator_done(pmlp__simulator *p) {
    const pmlp_allocator *allocator = &p->s->allocator;
    pmlp__delete(allocator, p->clock);
    pmlp__delete(allocator, p->f_done);
    pmlp__delete(allocator, p->ahead);
    pmlp__delete(allocator, p->f_end);
    pmlp__delete(allocator, p->i_end);
    pmlp__delete(allocator, p->begin);
    pmlp__delete(allocator, p->first);
    pmlp__delete(allocator, p->next);
    pmlp__delete(allocator, p->rank);
    pmlp__ready_done(&p->ready, allocator);
}

static bool pmlp__simulator_init(pmlp__simulator *p, const pmlp_schedule *s,
                                 const pmlp_costs *costs) {
    const pmlp_allocator *allocator = &s->allocator;
    const size_t cells = (size_t)s->stages * (size_t)s->microbatches;
    const size_t workers = (size_t)s->workers;
    size_t i;
    int worker, at;
    p->s = s;
    if (costs) p->costs = *costs;
    p->clock = (double *)pmlp__new(allocator, workers, sizeof *p->clock);
    p->f_done = (int *)pmlp__new(allocator, (size_t)s->stages, sizeof *p->f_done);
    p->ahead = (int *)pmlp__new(allocator, (size_t)s->stages, sizeof *p->ahead);
    p->f_end = (double *)pmlp__new(allocator, cells, sizeof *p->f_end);
    p->i_end = (double *)pmlp__new(allocator, cells, sizeof *p->i_end);
    p->begin = (double *)pmlp__new(allocator, pmlp__action_count(s), sizeof *p->begin);
    p->first = (size_t *)pmlp__new(allocator, workers, sizeof *p->first);
    p->next = (int *)pmlp__new(allocator, workers, sizeof *p->next);
    if (!pmlp__ready_init(&p->ready, allocator, s->workers) || !p->clock || !p->f_done ||
        !p->ahead || !p->f_end || !p->i_end || !p->begin || !p->first || !p->next) {
        pmlp__simulator_done(p);
        return false;
    }
    for (i = 0; i < cells; i++) p->f_end[i] = p->i_end[i] = -1.0;
    for (worker = 0, i = 0; worker < s->workers; worker++) {
        p->first[worker] = i;
        i += (size_t)s->lists[worker].count;
        for (at = 0; at < s->lists[worker].count; at++)
            p->weights_left += (pmlp__seen_by(s->lists[worker].at[at].op) & PMLP__SEEN_W) != 0;
    }
    if (s->per_update) p->weights_left = 0; /* nobody waits for all of them */
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

/* What a stage does ahead of one micro-batch, not of an asynchronous schedule. */
static double pmlp__ahead_cost(const pmlp_schedule *s, const pmlp_costs *c, int stage) {
    return s->per_update ? 0.0 : pmlp__cost(c->ahead, stage, 0.0);
}

/* The cost of an action, less what of an F was done ahead. */
static double pmlp__rest_cost(const pmlp__simulator *p, pmlp_action a) {
    const double cost = pmlp__action_cost(&p->costs, a);
    const bool begun = a.op == PMLP_OP_F && p->ahead[a.stage] > p->f_done[a.stage];
    return begun ? cost - pmlp__ahead_cost(p->s, &p->costs, a.stage) : cost;
}

/* Whether a worker that would have to wait for this action can begin another F of its stage. */
static bool pmlp__can_begin(const pmlp__simulator *p, pmlp_action a) {
    return a.op == PMLP_OP_F && a.stage > 0 && p->ahead[a.stage] < p->s->microbatches &&
           pmlp__ahead_cost(p->s, &p->costs, a.stage) > 0.0;
}

static void pmlp__begin_ahead(pmlp__simulator *p, int worker, int stage) {
    p->clock[worker] += pmlp__ahead_cost(p->s, &p->costs, stage);
    p->ahead[stage]++;
}

static void pmlp__f_is_done(pmlp__simulator *p, int stage) {
    if (++p->f_done[stage] > p->ahead[stage]) p->ahead[stage] = p->f_done[stage];
}

/* A hand-off between two stages, of which one is `stage` and the other `from`. */
static double pmlp__transfer_cost(const pmlp_schedule *s, const pmlp_costs *c, int stage,
                                  int from) {
    if (!pmlp__crosses(s, stage, from)) return 0.0;
    return c->latency + c->per_byte * pmlp__cost(c->message_bytes, pmlp__least(stage, from), 0.0);
}

/* When what the action needs from another stage is there; -1 if that has not happened yet. */
static double pmlp__available(const pmlp__simulator *p, pmlp_action a) {
    const pmlp_schedule *s = p->s;
    const bool forward = a.op == PMLP_OP_F;
    const bool backward = a.op == PMLP_OP_I || a.op == PMLP_OP_B;
    const int from = forward ? a.stage - 1 : a.stage + 1;
    double end;
    if (a.op == PMLP_OP_U) return p->weights_left > 0 ? -1.0 : s->per_update ? 0.0 : p->weights_end;
    if ((!forward && !backward) || from < 0 || from >= s->stages) return 0.0;
    end = (forward ? p->f_end : p->i_end)[pmlp__cell(s, from, a.microbatch)];
    return end < 0.0 ? end : end + pmlp__transfer_cost(s, &p->costs, a.stage, from);
}

/* One worker until it has to wait. */
static void pmlp__simulate_worker(pmlp__simulator *p, int worker) {
    const pmlp_schedule *s = p->s;
    const pmlp__list *list = &s->lists[worker];
    for (; p->next[worker] < list->count; p->next[worker]++) {
        const pmlp_action a = list->at[p->next[worker]];
        const double available = pmlp__available(p, a);
        double begin, end;
        if (available < 0.0) return;
        while (available > p->clock[worker] && pmlp__can_begin(p, a))
            pmlp__begin_ahead(p, worker, a.stage);
        begin = available > p->clock[worker] ? available : p->clock[worker];
        end = begin + pmlp__rest_cost(p, a);
        p->begin[p->first[worker] + (size_t)p->next[worker]] = begin;
        if (p->rank) p->rank[p->first[worker] + (size_t)p->next[worker]] = p->ranked++;
        p->clock[worker] = end;
        if (a.op == PMLP_OP_F) {
            pmlp__f_is_done(p, a.stage);
            p->f_end[pmlp__cell(s, a.stage, a.microbatch)] = end;
            if (a.stage + 1 < s->stages) pmlp__ready_add(&p->ready, s->stage_worker[a.stage + 1]);
        }
        if (a.op == PMLP_OP_I || a.op == PMLP_OP_B) {
            p->i_end[pmlp__cell(s, a.stage, a.microbatch)] = end;
            if (a.stage > 0) pmlp__ready_add(&p->ready, s->stage_worker[a.stage - 1]);
        }
        if (pmlp__seen_by(a.op) & PMLP__SEEN_W) {
            if (end > p->weights_end) p->weights_end = end;
            if (--p->weights_left == 0) pmlp__ready_add_all(&p->ready);
        }
    }
}

/* Fills the simulator, with ranks if wanted; on failure there is nothing to free. */
static pmlp_result pmlp__simulator_run(pmlp__simulator *p, const pmlp_schedule *s,
                                       const pmlp_costs *costs, bool ranked, pmlp_error *error) {
    int worker;
    memset(p, 0, sizeof *p);
    if (!s) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "schedule: is NULL");
    if (pmlp__is_sparse(s, error)) return PMLP_ERROR_SCHEDULE;
    if (costs && pmlp__bad_costs(s->stages, costs))
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT,
                          "costs: are not numbers in 0 .. 1e100 for each of the %d stages",
                          s->stages);
    if (!pmlp__simulator_init(p, s, costs)) return pmlp__no_memory(error, "simulating a schedule");
    if (ranked) {
        p->rank = (size_t *)pmlp__new(&s->allocator, pmlp__action_count(s), sizeof *p->rank);
        if (!p->rank) {
            pmlp__simulator_done(p);
            return pmlp__no_memory(error, "simulating a schedule");
        }
    }
    while (p->ready.count > 0) pmlp__simulate_worker(p, pmlp__ready_take(&p->ready));
    for (worker = 0; worker < s->workers; worker++)
        if (p->next[worker] < s->lists[worker].count) {
            const pmlp_action a = s->lists[worker].at[p->next[worker]];
            pmlp__simulator_done(p);
            return pmlp__check_fail(error, PMLP_ERROR_DEADLOCK, worker, a,
                                    "worker %d can never do %s: what it needs does not come",
                                    worker, pmlp__action_label(a).text);
        }
    return PMLP_OK;
}

/* Most that a worker holds at once: a stage's share of a micro-batch from its F to its W. */
static double pmlp__most_held(const pmlp_schedule *s, const double *held, int worker) {
    const pmlp__list *list = &s->lists[worker];
    double now = 0.0, most = 0.0;
    int i;
    for (i = 0; i < list->count; i++) {
        const pmlp_action a = list->at[i];
        if (a.op == PMLP_OP_F) now += pmlp__cost(held, a.stage, 1.0);
        if (pmlp__seen_by(a.op) & PMLP__SEEN_W) now -= pmlp__cost(held, a.stage, 1.0);
        if (now > most) most = now;
    }
    return most;
}

static pmlp_simulation pmlp__simulation_of(const pmlp__simulator *p) {
    const pmlp_schedule *s = p->s;
    pmlp_simulation sim = {0.0, 0.0, 0.0, 0.0};
    double work = 0.0;
    int worker, i;
    for (worker = 0; worker < s->workers; worker++) {
        const double held = pmlp__most_held(s, p->costs.held, worker);
        double busy = 0.0;
        for (i = 0; i < s->lists[worker].count; i++)
            busy += pmlp__action_cost(&p->costs, s->lists[worker].at[i]);
        if (busy > sim.busiest) sim.busiest = busy;
        if (held > sim.peak) sim.peak = held;
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
    const pmlp_result result = pmlp__simulator_run(&p, s, costs, false, error);
    if (result != PMLP_OK) return result;
    if (begin && pmlp__action_count(s))
        memcpy(begin, p.begin, pmlp__action_count(s) * sizeof *begin);
    if (simulation) *simulation = pmlp__simulation_of(&p);
    pmlp__simulator_done(&p);
    return PMLP_OK;
}

/* --- lowering in one order -------------------------------------------------------------------- */

/* A place in the order of everything that happens: by time, and at one and the same time, which
   costs of 0 can make long, by the order in which the simulator came to it. An action never comes
   before what it needs. A hand-off has the place of the end of the action that it comes from. */
typedef struct pmlp__moment {
    double time;
    size_t rank;
} pmlp__moment;

static bool pmlp__is_before(pmlp__moment a, pmlp__moment b) {
    return a.time != b.time ? a.time < b.time : a.rank < b.rank;
}

/* A hand-off as one of its two workers sees it. */
typedef struct pmlp__handoff {
    pmlp__moment at;
    pmlp_action action; /* SEND or RECV */
} pmlp__handoff;

static int pmlp__by_moment(const void *a_, const void *b_) {
    const pmlp__handoff *a = (const pmlp__handoff *)a_, *b = (const pmlp__handoff *)b_;
    return pmlp__is_before(a->at, b->at) ? -1 : pmlp__is_before(b->at, a->at);
}

/* ranks [2][stages][m]: those of F and of I, by stage and micro-batch. */
static void pmlp__ranks_of_cells(const pmlp__simulator *p, size_t *ranks) {
    const pmlp_schedule *s = p->s;
    const size_t cells = (size_t)s->stages * (size_t)s->microbatches;
    int worker, i;
    for (worker = 0; worker < s->workers; worker++)
        for (i = 0; i < s->lists[worker].count; i++) {
            const pmlp_action a = s->lists[worker].at[i];
            if (a.op == PMLP_OP_F || a.op == PMLP_OP_I)
                ranks[(a.op == PMLP_OP_I ? cells : 0) + pmlp__cell(s, a.stage, a.microbatch)] =
                    p->rank[p->first[worker] + (size_t)i];
        }
}

/* The hand-offs of one worker in order; returns how many. */
static int pmlp__handoffs_of(const pmlp__simulator *p, const size_t *ranks, int worker,
                             pmlp__handoff *out) {
    const pmlp_schedule *s = p->s;
    const pmlp__list *list = &s->lists[worker];
    const size_t cells = (size_t)s->stages * (size_t)s->microbatches;
    pmlp_action parts[4];
    int n = 0, i, k;
    for (i = 0; i < list->count; i++) {
        const int count = pmlp__expand(s, list->at[i], false, parts);
        for (k = 0; k < count; k++) {
            const int edge = pmlp__edge_of(parts[k]);
            const int from = edge % 2 ? edge / 2 + 1 : edge / 2;
            size_t cell;
            if (edge < 0) continue;
            cell = pmlp__cell(s, from, parts[k].microbatch);
            out[n].at.time = (edge % 2 ? p->i_end : p->f_end)[cell];
            out[n].at.rank = ranks[(edge % 2 ? cells : 0) + cell];
            out[n++].action = parts[k];
        }
    }
    qsort(out, (size_t)n, sizeof *out, pmlp__by_moment);
    return n;
}

/* Merges a worker's actions with its hand-offs. */
static bool pmlp__emit_in_order(const pmlp__simulator *p, pmlp_schedule *out, int worker,
                                const pmlp__handoff *handoffs, int count) {
    const pmlp__list *list = &p->s->lists[worker];
    int h = 0, i;
    for (i = 0; i <= list->count; i++) {
        const size_t at = p->first[worker] + (size_t)i;
        pmlp__moment begin = {HUGE_VAL, 0};
        if (i < list->count) {
            begin.time = p->begin[at];
            begin.rank = p->rank[at];
        }
        for (; h < count && pmlp__is_before(handoffs[h].at, begin); h++)
            if (!pmlp__emit(out, worker, handoffs[h].action.op, handoffs[h].action.stage,
                            handoffs[h].action.microbatch))
                return false;
        if (i < list->count &&
            !pmlp__emit(out, worker, list->at[i].op, list->at[i].stage, list->at[i].microbatch))
            return false;
    }
    return true;
}

/* B as I, W, without hand-offs. NULL: no memory. */
static pmlp_schedule *pmlp__split(const pmlp_schedule *s) {
    pmlp_schedule *out = pmlp__schedule_like(s, &s->allocator);
    bool ok = out != NULL;
    int worker, i;
    for (worker = 0; ok && worker < s->workers; worker++)
        for (i = 0; ok && i < s->lists[worker].count; i++) {
            const pmlp_action a = s->lists[worker].at[i];
            const bool whole = a.op == PMLP_OP_B;
            ok = pmlp__emit(out, worker, whole ? PMLP_OP_I : a.op, a.stage, a.microbatch) &&
                 (!whole || pmlp__emit(out, worker, PMLP_OP_W, a.stage, a.microbatch));
        }
    if (ok) return out;
    pmlp_schedule_destroy(out);
    return NULL;
}

static pmlp_schedule *pmlp__merge_in_order(const pmlp__simulator *p) {
    const pmlp_schedule *s = p->s;
    const size_t cells = (size_t)s->stages * (size_t)s->microbatches;
    pmlp_schedule *out = pmlp__schedule_like(s, &s->allocator);
    pmlp__handoff *handoffs;
    size_t *ranks;
    int worker, longest = 0;
    bool ok;
    for (worker = 0; worker < s->workers; worker++)
        if (s->lists[worker].count > longest) longest = s->lists[worker].count;
    handoffs = (pmlp__handoff *)pmlp__new(&s->allocator, 2 * (size_t)longest, sizeof *handoffs);
    ranks = (size_t *)pmlp__new(&s->allocator, 2 * cells, sizeof *ranks);
    ok = out && handoffs && ranks;
    if (ok) pmlp__ranks_of_cells(p, ranks);
    for (worker = 0; ok && worker < s->workers; worker++) {
        const int count = pmlp__handoffs_of(p, ranks, worker, handoffs);
        ok = pmlp__emit_in_order(p, out, worker, handoffs, count);
    }
    pmlp__delete(&s->allocator, handoffs);
    pmlp__delete(&s->allocator, ranks);
    if (ok) {
        out->lowered = true;
        return out;
    }
    pmlp_schedule_destroy(out);
    return NULL;
}

PMLP_API pmlp_result pmlp_schedule_lower_in_order(const pmlp_schedule *s, const pmlp_costs *costs,
                                                  pmlp_schedule **lowered, pmlp_error *error) {
    pmlp_schedule *split, *out;
    pmlp__simulator p;
    pmlp_result result;
    if (!lowered) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "lowered: is NULL");
    *lowered = NULL;
    if (!s) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "schedule: is NULL");
    if (s->lowered)
        return pmlp__fail(error, PMLP_ERROR_SCHEDULE, "the schedule has been lowered already");
    split = pmlp__split(s);
    if (!split) return pmlp__no_memory(error, "a lowered schedule");
    result = pmlp__simulator_run(&p, split, costs, true, error);
    if (result == PMLP_OK) {
        out = pmlp__merge_in_order(&p);
        pmlp__simulator_done(&p);
        if (!out) result = pmlp__no_memory(error, "a lowered schedule");
        *lowered = out;
    }
    pmlp_schedule_destroy(split);
    return result;
}

/* --- W put off, as the trainer does it -------------------------------------------------------- */

/* A simulation in the order of time, because whether a worker would have to wait is a matter of
   what has been handed over by then: of all workers the one whose next action begins first does
   it. */
typedef struct pmlp__runner {
    pmlp__simulator sim; /* of the lists with I and W apart */
    pmlp_schedule *out;
    int most;
    int *w_next, *w_end; /* [stages]: micro-batches whose W is put off */
    int *pending;        /* [workers]: such W of all its stages */
    bool *flushing;      /* [workers]: doing them, until none is left */
    pmlp_action *choice; /* [workers]: what it does next */
    double *begin;       /* [workers]: and when it can; HUGE_VAL: that depends on the others */
    bool *stale;         /* [workers]: that has to be found out anew */
} pmlp__runner;

/* The stage whose W the worker has put off and should do, if `enough` or more are together. */
static int pmlp__runner_w(const pmlp__runner *p, int worker, int enough) {
    int stage;
    for (stage = 0; p->pending[worker] > 0 && stage < p->sim.s->stages; stage++)
        if (p->sim.s->stage_worker[stage] == worker &&
            p->w_end[stage] - p->w_next[stage] >= enough)
            return stage;
    return -1;
}

static void pmlp__runner_choose(pmlp__runner *p, int worker) {
    const pmlp__list *list = &p->sim.s->lists[worker];
    const double clock = p->sim.clock[worker];
    pmlp_action a = {PMLP_OP_NONE, 0, 0};
    double available = -1.0;
    bool ahead = false;
    int *next = &p->sim.next[worker], w;
    for (; *next < list->count && list->at[*next].op == PMLP_OP_W; ++*next) {
        p->w_end[list->at[*next].stage]++;
        p->pending[worker]++;
    }
    w = pmlp__runner_w(p, worker, p->flushing[worker] ? 1 : p->most);
    if (w < 0 && *next < list->count) {
        a = list->at[*next];
        available = pmlp__available(&p->sim, a);
        ahead = (available < 0.0 || available > clock) && pmlp__can_begin(&p->sim, a);
    }
    if (w < 0 && (a.op == PMLP_OP_U || available < 0.0 || available > clock))
        w = pmlp__runner_w(p, worker, 1);
    if (w < 0 && ahead) {
        a.op = PMLP_OP_NONE; /* the part of an F that can be begun */
        available = clock;
    }
    if (w >= 0) {
        a.op = PMLP_OP_W;
        a.stage = w;
        a.microbatch = p->w_next[w];
        available = clock;
    }
    p->begin[worker] = available < 0.0 ? HUGE_VAL : available > clock ? available : clock;
    p->choice[worker] = a;
    p->stale[worker] = false;
}

/* Does what the worker has chosen; false if there is no memory. */
static bool pmlp__runner_do(pmlp__runner *p, int worker) {
    pmlp__simulator *sim = &p->sim;
    const pmlp_schedule *s = sim->s;
    const pmlp_action a = p->choice[worker];
    const double end = p->begin[worker] + pmlp__rest_cost(sim, a);
    int i;
    if (a.op == PMLP_OP_NONE) {
        pmlp__begin_ahead(sim, worker, a.stage);
        return p->stale[worker] = true;
    }
    sim->clock[worker] = end;
    p->stale[worker] = true;
    if (a.op == PMLP_OP_W) {
        p->w_next[a.stage]++;
        p->flushing[worker] = --p->pending[worker] > 0;
        if (end > sim->weights_end) sim->weights_end = end;
        if (--sim->weights_left == 0)
            for (i = 0; i < s->workers; i++) p->stale[i] = true;
    } else {
        sim->next[worker]++;
    }
    if (a.op == PMLP_OP_F) {
        pmlp__f_is_done(sim, a.stage);
        sim->f_end[pmlp__cell(s, a.stage, a.microbatch)] = end;
        if (a.stage + 1 < s->stages) p->stale[s->stage_worker[a.stage + 1]] = true;
    }
    if (a.op == PMLP_OP_I) {
        sim->i_end[pmlp__cell(s, a.stage, a.microbatch)] = end;
        if (a.stage > 0) p->stale[s->stage_worker[a.stage - 1]] = true;
    }
    return pmlp__emit(p->out, worker, a.op, a.stage, a.microbatch);
}

/* p->sim, out and most are set. Every action is done once; that there is always one is the
   checker's proof. */
static bool pmlp__runner_run(pmlp__runner *p) {
    const pmlp_schedule *s = p->sim.s;
    size_t left = pmlp__action_count(s);
    int worker, first;
    bool ok = true;
    for (worker = 0; worker < s->workers; worker++) p->stale[worker] = true;
    while (ok && left > 0) {
        for (worker = 0, first = 0; worker < s->workers; worker++) {
            if (p->stale[worker]) pmlp__runner_choose(p, worker);
            if (p->begin[worker] < p->begin[first]) first = worker;
        }
        left -= p->choice[first].op != PMLP_OP_NONE;
        ok = p->begin[first] < HUGE_VAL && pmlp__runner_do(p, first);
    }
    return ok;
}

PMLP_API pmlp_result pmlp_schedule_put_off(const pmlp_schedule *s, const pmlp_costs *costs,
                                           int most, pmlp_schedule **out, pmlp_error *error) {
    const pmlp_allocator *allocator;
    pmlp__runner p;
    pmlp_schedule *split;
    pmlp_result result;
    if (!out) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "out: is NULL");
    *out = NULL;
    if (!s) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "schedule: is NULL");
    if (most < 1) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "most: %d is less than 1", most);
    if (s->lowered)
        return pmlp__fail(error, PMLP_ERROR_SCHEDULE, "the schedule has been lowered already");
    result = pmlp_schedule_check(s, s->microbatches, NULL, error);
    if (result != PMLP_OK) return result;
    if (costs && pmlp__bad_costs(s->stages, costs))
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT,
                          "costs: are not numbers in 0 .. 1e100 for each of the %d stages",
                          s->stages);
    memset(&p, 0, sizeof p);
    p.most = most;
    allocator = &s->allocator;
    split = pmlp__split(s);
    p.out = pmlp__schedule_like(s, allocator);
    p.w_next = (int *)pmlp__new(allocator, (size_t)s->stages, sizeof *p.w_next);
    p.w_end = (int *)pmlp__new(allocator, (size_t)s->stages, sizeof *p.w_end);
    p.pending = (int *)pmlp__new(allocator, (size_t)s->workers, sizeof *p.pending);
    p.flushing = (bool *)pmlp__new(allocator, (size_t)s->workers, sizeof *p.flushing);
    p.choice = (pmlp_action *)pmlp__new(allocator, (size_t)s->workers, sizeof *p.choice);
    p.begin = (double *)pmlp__new(allocator, (size_t)s->workers, sizeof *p.begin);
    p.stale = (bool *)pmlp__new(allocator, (size_t)s->workers, sizeof *p.stale);
    if (split && p.out && p.w_next && p.w_end && p.pending && p.flushing && p.choice && p.begin &&
        p.stale &&
        pmlp__simulator_init(&p.sim, split, costs)) {
        if (pmlp__runner_run(&p)) *out = p.out;
        pmlp__simulator_done(&p.sim);
    }
    if (!*out) {
        pmlp_schedule_destroy(p.out);
        result = pmlp__no_memory(error, "a schedule with W put off");
    }
    pmlp_schedule_destroy(split);
    pmlp__delete(allocator, p.w_next);
    pmlp__delete(allocator, p.w_end);
    pmlp__delete(allocator, p.pending);
    pmlp__delete(allocator, p.flushing);
    pmlp__delete(allocator, p.choice);
    pmlp__delete(allocator, p.begin);
    pmlp__delete(allocator, p.stale);
    return result;
}

/*============================================================================================*/
/* >>timeline                                                                                 */
/*============================================================================================*/

struct pmlp_timeline {
    pmlp_allocator allocator;
    int workers, stages, microbatches;
    int *stage_worker;   /* [stages] */
    double *held;        /* [stages]: what a stage keeps of a micro-batch from F to W */
    pmlp_span **spans;   /* [workers]: in order of time */
    int *counts;         /* [workers] */
    double makespan;
};

PMLP_API void pmlp_timeline_destroy(pmlp_timeline *t) {
    pmlp_allocator allocator;
    int worker;
    if (!t) return;
    allocator = t->allocator;
    for (worker = 0; t->spans && worker < t->workers; worker++)
        pmlp__delete(&allocator, t->spans[worker]);
    pmlp__delete(&allocator, t->spans);
    pmlp__delete(&allocator, t->counts);
    pmlp__delete(&allocator, t->held);
    pmlp__delete(&allocator, t->stage_worker);
    pmlp__delete(&allocator, t);
}

/* Without spans yet; held may be NULL. */
static pmlp_timeline *pmlp__timeline_new(const pmlp_schedule *s, const pmlp_allocator *allocator,
                                         const double *held) {
    pmlp_timeline *t = (pmlp_timeline *)pmlp__new(allocator, 1, sizeof *t);
    int i;
    if (!t) return NULL;
    t->allocator = *allocator;
    t->workers = s->workers;
    t->stages = s->stages;
    t->microbatches = s->microbatches;
    t->stage_worker = (int *)pmlp__new(allocator, (size_t)s->stages, sizeof *t->stage_worker);
    t->held = (double *)pmlp__new(allocator, (size_t)s->stages, sizeof *t->held);
    t->spans = (pmlp_span **)pmlp__new(allocator, (size_t)s->workers, sizeof *t->spans);
    t->counts = (int *)pmlp__new(allocator, (size_t)s->workers, sizeof *t->counts);
    if (!t->stage_worker || !t->held || !t->spans || !t->counts) {
        pmlp_timeline_destroy(t);
        return NULL;
    }
    for (i = 0; i < s->stages; i++) {
        t->stage_worker[i] = s->stage_worker[i];
        t->held[i] = pmlp__cost(held, i, 1.0);
    }
    return t;
}

/* Room for a worker's spans; false if there is no memory. */
static bool pmlp__timeline_reserve(pmlp_timeline *t, int worker, int count) {
    t->spans[worker] =
        (pmlp_span *)pmlp__new(&t->allocator, (size_t)count, sizeof *t->spans[worker]);
    return t->spans[worker] != NULL;
}

static void pmlp__timeline_add(pmlp_timeline *t, int worker, const pmlp_span *span) {
    t->spans[worker][t->counts[worker]++] = *span;
    if (span->end > t->makespan) t->makespan = span->end;
}

/* What the worker began of other F while it would have waited for this action: the simulation once
   more, between the end of the last span and the begin of this one. */
static void pmlp__timeline_ahead(pmlp_timeline *t, pmlp__simulator *p, int worker, pmlp_action a) {
    const double available = pmlp__available(p, a);
    pmlp_span span = {PMLP_OP_F, 0, 0, 1, true, 0.0, 0.0};
    while (available > p->clock[worker] && pmlp__can_begin(p, a)) {
        span.stage = a.stage;
        span.microbatch = p->ahead[a.stage];
        span.begin = p->clock[worker];
        pmlp__begin_ahead(p, worker, a.stage);
        span.end = p->clock[worker];
        pmlp__timeline_add(t, worker, &span);
    }
}

static bool pmlp__timeline_fill(pmlp_timeline *t, pmlp__simulator *p) {
    const pmlp_schedule *s = p->s;
    int worker, i;
    for (i = 0; i < s->stages; i++) p->f_done[i] = p->ahead[i] = 0;
    for (worker = 0; worker < s->workers; worker++) {
        const pmlp__list *list = &s->lists[worker];
        if (!pmlp__timeline_reserve(t, worker, (p->costs.ahead ? 2 : 1) * list->count))
            return false;
        p->clock[worker] = 0.0;
        for (i = 0; i < list->count; i++) {
            pmlp_span span;
            if (list->at[i].op >= PMLP_OP_SEND_F) continue; /* takes no time of the worker's */
            pmlp__timeline_ahead(t, p, worker, list->at[i]);
            span.op = list->at[i].op;
            span.stage = list->at[i].stage;
            span.microbatch = list->at[i].microbatch;
            span.count = 1;
            span.ahead = false;
            span.begin = p->begin[p->first[worker] + (size_t)i];
            span.end = span.begin + pmlp__rest_cost(p, list->at[i]);
            if (span.op == PMLP_OP_F) pmlp__f_is_done(p, span.stage);
            p->clock[worker] = span.end;
            pmlp__timeline_add(t, worker, &span);
        }
    }
    return true;
}

PMLP_API pmlp_result pmlp_schedule_timeline(const pmlp_schedule *s, const pmlp_costs *costs,
                                            pmlp_timeline **timeline, pmlp_error *error) {
    pmlp__simulator p;
    pmlp_timeline *t;
    pmlp_result result;
    bool ok;
    if (!timeline) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "timeline: is NULL");
    *timeline = NULL;
    result = pmlp__simulator_run(&p, s, costs, false, error);
    if (result != PMLP_OK) return result;
    t = pmlp__timeline_new(s, &s->allocator, p.costs.held);
    ok = t && pmlp__timeline_fill(t, &p);
    pmlp__simulator_done(&p);
    if (ok) {
        *timeline = t;
        return PMLP_OK;
    }
    pmlp_timeline_destroy(t);
    return pmlp__no_memory(error, "a timeline");
}

PMLP_API int pmlp_timeline_workers(const pmlp_timeline *t) { return t ? t->workers : 0; }
PMLP_API double pmlp_timeline_makespan(const pmlp_timeline *t) { return t ? t->makespan : 0.0; }

PMLP_API const pmlp_span *pmlp_timeline_spans(const pmlp_timeline *t, int worker, int *count) {
    const bool exists = t && worker >= 0 && worker < t->workers;
    if (count) *count = exists ? t->counts[worker] : 0;
    return exists ? t->spans[worker] : NULL;
}

/* How many of a worker's spans begin no later than `time`. */
static int pmlp__spans_before(const pmlp_timeline *t, int worker, double time) {
    int low = 0, high = t->counts[worker];
    while (low < high) {
        const int middle = low + (high - low) / 2;
        if (t->spans[worker][middle].begin <= time) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* What this span needed of another worker: the last F or I of that micro-batch before it; NULL if
   it needs nobody else. Steps that stand one behind the other have the same numbers. */
static const pmlp_span *pmlp__needed(const pmlp_timeline *t, int worker, const pmlp_span *span) {
    const bool forward = span->op == PMLP_OP_F;
    const int from = forward ? span->stage - 1 : span->stage + 1;
    int whose, i;
    if (span->ahead || (!forward && span->op != PMLP_OP_I && span->op != PMLP_OP_B) || from < 0 ||
        from >= t->stages || t->stage_worker[from] == worker)
        return NULL;
    whose = t->stage_worker[from];
    for (i = pmlp__spans_before(t, whose, span->begin) - 1; i >= 0; i--) {
        const pmlp_span *other = &t->spans[whose][i];
        const bool same = forward ? other->op == PMLP_OP_F
                                  : other->op == PMLP_OP_I || other->op == PMLP_OP_B;
        if (same && !other->ahead && other->stage == from &&
            other->microbatch == span->microbatch)
            return other;
    }
    return NULL;
}

static void pmlp__add_busy(pmlp_worker_time *time, const pmlp_span *span) {
    const double busy = span->end - span->begin;
    time->busy += busy;
    switch (span->op) {
    case PMLP_OP_F: time->f += busy; break;
    case PMLP_OP_I: time->i += busy; break;
    case PMLP_OP_W: time->w += busy; break;
    case PMLP_OP_B: time->b += busy; break;
    default: time->u += busy; break;
    }
}

/* What the worker did while it did nothing, from `from` until the span began. */
static void pmlp__add_gap(const pmlp_timeline *t, int worker, const pmlp_span *span, double from,
                          double *waited, pmlp_worker_time *time) {
    const pmlp_span *needed = span->begin > from ? pmlp__needed(t, worker, span) : NULL;
    double until = from;
    if (span->begin <= from) return;
    if (needed && needed->end > from)
        until = needed->end < span->begin ? needed->end : span->begin;
    if (needed) waited[t->stage_worker[needed->stage]] += until - from;
    time->waiting += until - from;
    time->transfer += span->begin - until;
}

PMLP_API pmlp_result pmlp_timeline_worker(const pmlp_timeline *t, int worker,
                                          pmlp_worker_time *time) {
    double *waited, held = 0.0, last = 0.0;
    int i, final;
    if (!t || !time || worker < 0 || worker >= t->workers) return PMLP_ERROR_ARGUMENT;
    memset(time, 0, sizeof *time);
    time->waits_for = -1;
    waited = (double *)pmlp__new(&t->allocator, (size_t)t->workers, sizeof *waited);
    if (!waited) return PMLP_ERROR_MEMORY;
    for (final = t->counts[worker]; final > 0; final--) /* what follows is updates, and drain */
        if (t->spans[worker][final - 1].op != PMLP_OP_U) break;
    for (i = 0; i < t->counts[worker]; i++) {
        const pmlp_span *span = &t->spans[worker][i];
        pmlp__add_busy(time, span);
        if (span->op == PMLP_OP_F && !span->ahead) held += t->held[span->stage];
        if (held > time->peak) time->peak = held;
        if (pmlp__seen_by(span->op) & PMLP__SEEN_W) held -= span->count * t->held[span->stage];
        if (i == 0) time->fill = span->begin;
        else if (i < final) pmlp__add_gap(t, worker, span, last, waited, time);
        last = span->end;
    }
    time->drain = t->makespan - time->busy - time->fill - time->waiting - time->transfer;
    if (time->drain < 0.0) time->drain = 0.0; /* rounding */
    for (i = 0; i < t->workers; i++)
        if (waited[i] > 0.0 && (time->waits_for < 0 || waited[i] > waited[time->waits_for]))
            time->waits_for = i;
    pmlp__delete(&t->allocator, waited);
    return PMLP_OK;
}

/*============================================================================================*/
/* >>auto: a schedule for given costs                                                         */
/*                                                                                            */
/* Greedy list scheduling: whoever can begin something first does so, what it prefers being a */
/* matter of rules. A few dozen sets of rules are tried, the built-in kinds as well, and the  */
/* shortest by simulation is kept. No optimum is promised: a schedule that is never worse.    */
/*============================================================================================*/

/* One set of rules. */
typedef struct pmlp__rules {
    bool f_first;   /* of F and I that are both ready, take F */
    bool low_first; /* of several stages that are ready, take the lowest, else the highest */
    int w;          /* 0: W right after its I; 1: in gaps that it fits into; 2: in any gap; 3: when
                       nothing else will ever be there, or for want of memory */
    int flight;     /* most micro-batches between a stage's F and its I, in halves of the number of
                       stages from it to the last; 0: as many as memory allows */
} pmlp__rules;

/* What a worker would do next, and when; begin is HUGE_VAL if that depends on the others. */
typedef struct pmlp__choice {
    double begin;
    pmlp_op op;
    int stage;
} pmlp__choice;

typedef struct pmlp__search {
    pmlp_schedule *s; /* written as the search goes on */
    const pmlp_costs *costs;
    double memory;
    pmlp__rules rules;
    int *next_f, *next_i, *next_w; /* [stages] */
    double *f_end, *i_end;         /* [stages][m] */
    double *reserve;               /* [stages]: what the worker's higher stages hold of each */
    double *clock, *held;          /* [workers] */
    pmlp__choice *choice;          /* [workers] */
    bool *stale;                   /* [workers]: choice has to be made anew */
} pmlp__search;

static void pmlp__search_done(pmlp__search *p, const pmlp_allocator *allocator) {
    pmlp__delete(allocator, p->next_f);
    pmlp__delete(allocator, p->next_i);
    pmlp__delete(allocator, p->next_w);
    pmlp__delete(allocator, p->f_end);
    pmlp__delete(allocator, p->i_end);
    pmlp__delete(allocator, p->reserve);
    pmlp__delete(allocator, p->clock);
    pmlp__delete(allocator, p->held);
    pmlp__delete(allocator, p->choice);
    pmlp__delete(allocator, p->stale);
}

static bool pmlp__search_init(pmlp__search *p, const pmlp_schedule *like, const pmlp_costs *costs,
                              double memory) {
    const pmlp_allocator *allocator = &like->allocator;
    const size_t stages = (size_t)like->stages, workers = (size_t)like->workers;
    const size_t cells = stages * (size_t)like->microbatches;
    int stage, above;
    memset(p, 0, sizeof *p);
    p->costs = costs;
    p->memory = memory;
    p->next_f = (int *)pmlp__new(allocator, stages, sizeof *p->next_f);
    p->next_i = (int *)pmlp__new(allocator, stages, sizeof *p->next_i);
    p->next_w = (int *)pmlp__new(allocator, stages, sizeof *p->next_w);
    p->f_end = (double *)pmlp__new(allocator, cells, sizeof *p->f_end);
    p->i_end = (double *)pmlp__new(allocator, cells, sizeof *p->i_end);
    p->reserve = (double *)pmlp__new(allocator, stages, sizeof *p->reserve);
    p->clock = (double *)pmlp__new(allocator, workers, sizeof *p->clock);
    p->held = (double *)pmlp__new(allocator, workers, sizeof *p->held);
    p->choice = (pmlp__choice *)pmlp__new(allocator, workers, sizeof *p->choice);
    p->stale = (bool *)pmlp__new(allocator, workers, sizeof *p->stale);
    if (!p->next_f || !p->next_i || !p->next_w || !p->f_end || !p->i_end || !p->reserve ||
        !p->clock || !p->held || !p->choice || !p->stale) {
        pmlp__search_done(p, allocator);
        return false;
    }
    for (stage = 0; stage < like->stages; stage++)
        for (above = stage + 1; above < like->stages; above++)
            if (like->stage_worker[above] == like->stage_worker[stage])
                p->reserve[stage] += pmlp__cost(costs->held, above, 1.0);
    return true;
}

/* When a stage's next F can begin as far as the others are concerned; HUGE_VAL: not known, or not
   allowed. Memory: there must be room left for each higher stage of the worker once, so that the
   oldest micro-batch in flight can always go on; hence nothing can get stuck. */
static double pmlp__f_from(const pmlp__search *p, int stage) {
    const pmlp_schedule *s = p->s;
    const int i = p->next_f[stage], worker = s->stage_worker[stage];
    const int flight = (p->rules.flight * (s->stages - stage) + 1) / 2;
    if (i == s->microbatches || (stage > 0 && p->next_f[stage - 1] <= i)) return HUGE_VAL;
    if (p->rules.flight && i - p->next_i[stage] >= flight) return HUGE_VAL;
    if (p->held[worker] + pmlp__cost(p->costs->held, stage, 1.0) + p->reserve[stage] > p->memory)
        return HUGE_VAL;
    return stage == 0 ? 0.0
                      : p->f_end[pmlp__cell(s, stage - 1, i)] +
                            pmlp__transfer_cost(s, p->costs, stage, stage - 1);
}

static double pmlp__i_from(const pmlp__search *p, int stage) {
    const pmlp_schedule *s = p->s;
    const int i = p->next_i[stage];
    if (i >= p->next_f[stage]) return HUGE_VAL;
    if (stage == s->stages - 1) return 0.0;
    if (p->next_i[stage + 1] <= i) return HUGE_VAL;
    return p->i_end[pmlp__cell(s, stage + 1, i)] +
           pmlp__transfer_cost(s, p->costs, stage, stage + 1);
}

/* The better of two choices: what is ready now by the rules, else what is ready first. */
static bool pmlp__is_better(const pmlp__search *p, double clock, const pmlp__choice *a,
                            const pmlp__choice *b) {
    const bool a_now = a->begin <= clock, b_now = b->begin <= clock;
    if (a_now != b_now || !a_now) return a->begin < b->begin;
    if (a->op != b->op) return (a->op == PMLP_OP_F) == p->rules.f_first;
    return (a->stage < b->stage) == p->rules.low_first;
}

static pmlp__choice pmlp__choose(const pmlp__search *p, int worker) {
    const pmlp_schedule *s = p->s;
    const double clock = p->clock[worker];
    pmlp__choice best = {HUGE_VAL, PMLP_OP_NONE, -1}, at;
    int stage, w = -1;
    for (stage = 0; stage < s->stages; stage++) {
        if (s->stage_worker[stage] != worker) continue;
        at.stage = stage;
        at.op = PMLP_OP_F;
        at.begin = pmlp__f_from(p, stage);
        if (at.begin < HUGE_VAL && pmlp__is_better(p, clock, &at, &best)) best = at;
        at.op = PMLP_OP_I;
        at.begin = pmlp__i_from(p, stage);
        if (at.begin < HUGE_VAL && pmlp__is_better(p, clock, &at, &best)) best = at;
        if (p->next_w[stage] < p->next_i[stage] &&
            (w < 0 || p->next_w[stage] < p->next_w[w])) w = stage;
    }
    if (best.begin < clock) best.begin = clock;
    if (w >= 0) {
        const double gap = best.begin - clock, cost = pmlp__cost(p->costs->w, w, 1.0);
        const bool fits = p->rules.w == 0   ? true
                          : p->rules.w == 1 ? gap >= cost
                          : p->rules.w == 2 ? gap > 0.0
                                            : best.op == PMLP_OP_NONE;
        if (fits) {
            best.begin = clock;
            best.op = PMLP_OP_W;
            best.stage = w;
        }
    }
    return best;
}

/* Does what a worker has chosen; false if there is no memory. */
static bool pmlp__commit(pmlp__search *p, int worker) {
    pmlp_schedule *s = p->s;
    const pmlp__choice c = p->choice[worker];
    int *next = c.op == PMLP_OP_F ? p->next_f : c.op == PMLP_OP_I ? p->next_i : p->next_w;
    const int i = next[c.stage]++;
    const pmlp_action a = {c.op, c.stage, i};
    const double end = c.begin + pmlp__action_cost(p->costs, a);
    const double held = pmlp__cost(p->costs->held, c.stage, 1.0);
    p->clock[worker] = end;
    p->stale[worker] = true;
    if (c.op == PMLP_OP_F) {
        p->f_end[pmlp__cell(s, c.stage, i)] = end;
        p->held[worker] += held;
        if (c.stage + 1 < s->stages) p->stale[s->stage_worker[c.stage + 1]] = true;
    } else if (c.op == PMLP_OP_I) {
        p->i_end[pmlp__cell(s, c.stage, i)] = end;
        if (c.stage > 0) p->stale[s->stage_worker[c.stage - 1]] = true;
    } else {
        p->held[worker] -= held;
    }
    return pmlp__emit(s, worker, c.op, c.stage, i);
}

/* One schedule by the rules of the search; NULL if there is no memory. */
static pmlp_schedule *pmlp__search_run(pmlp__search *p, const pmlp_schedule *like) {
    const size_t stages = (size_t)like->stages;
    size_t left = 3 * stages * (size_t)like->microbatches;
    int worker;
    bool ok = true;
    p->s = pmlp__schedule_like(like, &like->allocator);
    if (!p->s) return NULL;
    memset(p->next_f, 0, stages * sizeof *p->next_f);
    memset(p->next_i, 0, stages * sizeof *p->next_i);
    memset(p->next_w, 0, stages * sizeof *p->next_w);
    for (worker = 0; worker < like->workers; worker++) {
        p->clock[worker] = p->held[worker] = 0.0;
        p->stale[worker] = true;
    }
    for (; ok && left > 0; left--) {
        int first = 0;
        for (worker = 0; worker < like->workers; worker++) {
            if (p->stale[worker]) p->choice[worker] = pmlp__choose(p, worker);
            p->stale[worker] = false;
            if (p->choice[worker].begin < p->choice[first].begin) first = worker;
        }
        ok = p->choice[first].op != PMLP_OP_NONE && pmlp__commit(p, first);
    }
    for (worker = 0; ok && worker < like->workers; worker++) ok = pmlp__add_updates(p->s, worker);
    if (ok) return p->s;
    pmlp_schedule_destroy(p->s);
    return NULL;
}

/* Keeps the shorter of two schedules; of equally long ones the one that holds less. Ends the life
   of the other. */
typedef struct pmlp__best {
    pmlp_schedule *s;
    pmlp_simulation sim;
} pmlp__best;

static pmlp_result pmlp__keep_better(pmlp__best *best, pmlp_schedule *s, const pmlp_costs *costs,
                                     double memory, pmlp_error *error) {
    pmlp_simulation sim;
    const pmlp_result result = pmlp_schedule_simulate(s, costs, NULL, &sim, error);
    const bool better = result == PMLP_OK && sim.peak <= memory &&
                        (!best->s || sim.makespan < best->sim.makespan ||
                         (sim.makespan <= best->sim.makespan && sim.peak < best->sim.peak));
    pmlp_schedule_destroy(better ? best->s : s);
    if (!better) return result;
    best->s = s;
    best->sim = sim;
    return PMLP_OK;
}

/* All rules on the owners of `like`. */
static pmlp_result pmlp__search_all(const pmlp_schedule *like, const pmlp_costs *costs,
                                    double memory, pmlp__best *best, pmlp_error *error) {
    static const int flights[] = {0, 2, 3, 4};
    const bool several = like->stages > like->workers;
    pmlp__search search;
    pmlp_result result = PMLP_OK;
    int n;
    if (!pmlp__search_init(&search, like, costs, memory))
        return pmlp__no_memory(error, "searching a schedule");
    for (n = 0; result == PMLP_OK && n < (several ? 64 : 32); n++) {
        pmlp_schedule *found;
        search.rules.f_first = n & 1;
        search.rules.w = n >> 1 & 3;
        search.rules.flight = flights[n >> 3 & 3];
        search.rules.low_first = n >> 5 & 1;
        found = pmlp__search_run(&search, like);
        result = found ? pmlp__keep_better(best, found, costs, memory, error)
                       : pmlp__no_memory(error, "searching a schedule");
    }
    pmlp__search_done(&search, &like->allocator);
    return result;
}

/* Every worker must be able to hold one micro-batch of all its stages. */
static pmlp_result pmlp__check_memory(const pmlp_schedule *like, const pmlp_costs *costs,
                                      double memory, pmlp_error *error) {
    int worker, stage;
    for (worker = 0; worker < like->workers; worker++) {
        double needed = 0.0;
        for (stage = 0; stage < like->stages; stage++)
            if (like->stage_worker[stage] == worker)
                needed += pmlp__cost(costs->held, stage, 1.0);
        if (needed > memory)
            return pmlp__fail(error, PMLP_ERROR_ARGUMENT,
                              "memory: %g is less than the %g that worker %d needs for a single "
                              "micro-batch", memory, needed, worker);
    }
    return PMLP_OK;
}

/* One built-in kind, if it can have these sizes; on the owners of the loops, which all but the V
   have, and on those of the V all sets of rules as well, if the memory suffices. */
static pmlp_result pmlp__try_kind(const pmlp_schedule_desc *d, const pmlp_costs *costs,
                                  double memory, pmlp__best *best, pmlp_error *error) {
    pmlp_schedule *s;
    pmlp_result result = PMLP_OK;
    if (pmlp__check_sizes(d->kind, d->workers, d->virtual_stages, d->microbatches, 1, NULL))
        return PMLP_OK;
    s = pmlp__build(d);
    if (!s) return pmlp__no_memory(error, "searching a schedule");
    if ((d->kind == PMLP_SCHEDULE_LOOPED_BFS || d->kind == PMLP_SCHEDULE_ZB_V) &&
        pmlp__check_memory(s, costs, memory, error) == PMLP_OK)
        result = pmlp__search_all(s, costs, memory, best, error);
    if (result == PMLP_OK) return pmlp__keep_better(best, s, costs, memory, error);
    pmlp_schedule_destroy(s);
    return result;
}

static pmlp_result pmlp__build_auto(const pmlp_schedule_desc *desc, pmlp_schedule **schedule,
                                    pmlp_error *error) {
    /* a limit that is a sum of what is held may be meant exactly, however it was added up */
    const double memory = desc->memory > 0.0 ? desc->memory * (1.0 + 1e-9) : HUGE_VAL;
    pmlp_schedule_desc d = *desc;
    pmlp_costs costs;
    pmlp__best best;
    pmlp_error why;
    pmlp_result result = PMLP_OK;
    int kind;
    memset(&costs, 0, sizeof costs);
    memset(&best, 0, sizeof best);
    pmlp__error_clear(&why);
    if (desc->costs) costs = *desc->costs;
    if (pmlp__bad_costs(d.workers * d.virtual_stages, &costs) || !(desc->memory >= 0.0))
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT,
                          "costs, memory: are not numbers in 0 .. 1e100 for each of the %d stages",
                          d.workers * d.virtual_stages);
    for (kind = PMLP_SCHEDULE_SEQUENTIAL; result == PMLP_OK && kind < PMLP_SCHEDULE_AUTO; kind++) {
        d.kind = (pmlp_schedule_kind)kind;
        result = pmlp__try_kind(&d, &costs, memory, &best, &why);
    }
    if (result == PMLP_OK && !best.s) /* nothing fits */
        result = why.result != PMLP_OK ? why.result
                                       : pmlp__fail(&why, PMLP_ERROR_ARGUMENT,
                                                    "memory: no schedule needs as little as %g",
                                                    desc->memory);
    if (result == PMLP_OK) {
        *schedule = best.s;
        return PMLP_OK;
    }
    pmlp_schedule_destroy(best.s);
    if (error) *error = why;
    return result;
}

/*============================================================================================*/
/* >>pictures: timelines as text, as SVG and as a trace                                       */
/*============================================================================================*/

/* Whether a span is one that a picture shows: it takes time and computes something. */
static bool pmlp__is_shown(const pmlp_span *span) {
    return span->op >= PMLP_OP_F && span->op <= PMLP_OP_U && span->end > span->begin;
}

/* --- as text ---------------------------------------------------------------------------------- */

/* Label of a span in a drawing: without the stage if each worker has only one. */
static int pmlp__draw_label(const pmlp_timeline *t, const pmlp_span *span, char *label,
                            size_t size) {
    pmlp__text text;
    pmlp_action a;
    a.op = span->op;
    a.stage = span->stage;
    a.microbatch = span->microbatch;
    text.buffer = label;
    text.size = size;
    text.length = 0;
    pmlp__put_action(&text, a, t->stages > t->workers);
    if (span->count > 1) pmlp__put(&text, "-%d", span->microbatch + span->count - 1);
    pmlp__text_end(&text, NULL);
    return (int)text.length;
}

/* One worker's row: cell c shows what runs at the middle of the time that it stands for. */
static void pmlp__draw_worker(const pmlp_timeline *t, int worker, double unit, int cells, int width,
                              pmlp__text *text) {
    const pmlp_span *spans = t->spans[worker];
    int at = 0, labelled = -1, c;
    pmlp__put(text, "worker %-3d|", worker);
    for (c = 0; c < cells; c++) {
        const double middle = ((double)c + 0.5) * unit;
        char label[48];
        while (at < t->counts[worker] && spans[at].end <= middle) at++;
        if (at == t->counts[worker] || spans[at].begin > middle) {
            memset(label, '.', (size_t)width);
            label[width] = '\0';
        } else if (labelled == at) {
            memset(label, '=', (size_t)width);
            label[width] = '\0';
        } else {
            pmlp__draw_label(t, &spans[at], label, sizeof label);
            labelled = at;
        }
        pmlp__put(text, " %-*s", width, label);
    }
    pmlp__put(text, " |\n");
}

/* The widest label, two characters at least. */
static int pmlp__draw_width(const pmlp_timeline *t) {
    int worker, i, width = 2;
    for (worker = 0; worker < t->workers; worker++)
        for (i = 0; i < t->counts[worker]; i++) {
            const pmlp_span *span = &t->spans[worker][i];
            char label[48];
            const int n = pmlp__draw_label(t, span, label, sizeof label);
            if (span->end > span->begin && n > width) width = n;
        }
    return width;
}

PMLP_API pmlp_result pmlp_timeline_draw(const pmlp_timeline *timeline, double unit, char *buffer,
                                        size_t size, size_t *length, pmlp_error *error) {
    pmlp__text text;
    double cells;
    int worker, width;
    if (!timeline) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "timeline: is NULL");
    if (!buffer && size > 0) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "buffer: is NULL");
    if (unit == 0.0) unit = 1.0;
    if (!(unit > 0.0))
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "unit: %g is not positive", unit);
    cells = ceil(timeline->makespan / unit - 1e-9);
    if (!(cells <= 1e6))
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT,
                          "unit: %g would make more than a million cells", unit);
    text.buffer = buffer;
    text.size = size;
    text.length = 0;
    width = pmlp__draw_width(timeline);
    for (worker = 0; worker < timeline->workers; worker++)
        pmlp__draw_worker(timeline, worker, unit, (int)cells, width, &text);
    pmlp__text_end(&text, length);
    return PMLP_OK;
}

/* --- numbers and other people's text ---------------------------------------------------------- */

static void pmlp__put_byte(pmlp__text *text, char byte) {
    if (text->length + 1 < text->size) text->buffer[text->length] = byte;
    text->length++;
}

static void pmlp__put_string(pmlp__text *text, const char *string) {
    while (*string) pmlp__put_byte(text, *string++);
}

/* A number with a decimal point, whatever the locale puts there. */
static void pmlp__put_decimal(pmlp__text *text, double value, int decimals) {
    char digits[400]; /* enough for any double */
    bool point = false;
    int i;
    snprintf(digits, sizeof digits, "%.*f", decimals, value);
    for (i = 0; digits[i]; i++) {
        const bool digit = (digits[i] >= '0' && digits[i] <= '9') || digits[i] == '-';
        if (digit) pmlp__put_byte(text, digits[i]);
        else if (!point) pmlp__put_byte(text, '.');
        point = point || !digit;
    }
}

static double pmlp__round(double value) { return floor(value + 0.5); }

/* How many decimals, at most `most`, a value needs to be shown as exactly as `most` show it. */
static int pmlp__decimals(double value, int most) {
    double slack = 0.5, unit = 1.0;
    int decimals;
    for (decimals = 0; decimals < most; decimals++) slack /= 10.0;
    for (decimals = 0; decimals < most; decimals++, unit *= 10.0)
        if (fabs(value * unit - pmlp__round(value * unit)) <= slack * unit) break;
    return decimals;
}

/* Three or four digits and k, M, G or T. */
static void pmlp__put_amount(pmlp__text *text, double value) {
    static const char *const powers[] = {"", " k", " M", " G", " T"};
    int power = 0, most = 2;
    for (; value >= 9999.5 && power < 4; power++) value /= 1000.0;
    if (value >= 99.95) most = 1;
    if (value >= 999.5) most = 0;
    pmlp__put_decimal(text, value, pmlp__decimals(value, most));
    pmlp__put_string(text, powers[power]);
}

/* Bytes of the UTF-8 character at p; 0 if there is none, or one that XML does not allow. */
static int pmlp__utf8(const unsigned char *p) {
    const int n = p[0] < 0x80 ? 1 : p[0] < 0xc2 ? 0 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3
                : p[0] < 0xf5 ? 4 : 0;
    int i;
    if (n == 1) return p[0] >= 0x20 && p[0] != 0x7f;
    for (i = 1; i < n; i++)
        if ((p[i] & 0xc0) != 0x80) return 0;
    if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) ||
        (p[0] == 0xef && p[1] == 0xbf && p[2] > 0xbd) || (p[0] == 0xf0 && p[1] < 0x90) ||
        (p[0] == 0xf4 && p[1] > 0x8f))
        return 0;
    return n;
}

/* Text of the caller's inside XML or JSON, both of which it could otherwise break out of; cut to
   `most` characters. */
static void pmlp__put_quoted(pmlp__text *text, const char *string, int most, bool json) {
    const unsigned char *p = (const unsigned char *)string;
    for (; *p && most > 0; most--) {
        int n = pmlp__utf8(p);
        if (most == 1 && p[n > 0 ? n : 1]) {
            pmlp__put_string(text, "\xe2\x80\xa6"); /* an ellipsis */
            return;
        }
        if (n == 0) {
            pmlp__put_byte(text, *p++ < 0x20 ? ' ' : '?');
        } else if (n == 1 && strchr("&<>\"'\\", *p)) {
            if (json) pmlp__put(text, "\\u%04x", (unsigned)*p++);
            else pmlp__put(text, "&#%u;", (unsigned)*p++);
        } else {
            for (; n > 0; n--) pmlp__put_byte(text, (char)*p++);
        }
    }
}

/* --- as SVG ----------------------------------------------------------------------------------- */

#define PMLP__SHADES 4         /* of an op's colour, for the stages of one worker */
#define PMLP__MARGIN 24.0      /* pixels, as all lengths here */
#define PMLP__NARROW 2.5       /* bars below that share one path per row and colour */
#define PMLP__DIGIT 0.556      /* width of a digit in the fonts asked for, per font size */
#define PMLP__LETTER 0.53      /* of a letter in running text, generously */
#define PMLP__PARTS 9          /* of a makespan: f, i, w, b, u, fill, waiting, transfer, drain */

/* A picture in the making. Index 0 is the timeline, index 1 the one it is held against. */
typedef struct pmlp__picture {
    pmlp__text text;
    pmlp_picture label;         /* with the defaults put in */
    const pmlp_timeline *of[2]; /* the second may be NULL */
    pmlp_worker_time *times[2]; /* [workers] */
    int *chunk[2];              /* [stages]: how many stages below this one its worker has */
    int shades, decimals;       /* in use; of printed times */
    bool merged;                /* the parts i, w and b are compared as one */
    double left, right;         /* of the time axis */
    double per_time;            /* pixels per unit of time */
    double bar[2], gap;         /* heights of the rows; between workers */
    bool named;                 /* rows are high enough for both names and shares */
    double table;               /* where the numbers of the tables of times begin */
    double column, column_width;/* of the table at hand: where the first begins */
    double y;                   /* where the next thing goes */
} pmlp__picture;

static double pmlp__x(const pmlp__picture *p, double time) { return p->left + time * p->per_time; }

static void pmlp__svg_length(pmlp__picture *p, double length) {
    pmlp__put_decimal(&p->text, length, pmlp__decimals(length, 2));
}

static void pmlp__svg_attribute(pmlp__picture *p, const char *name, double value) {
    pmlp__put(&p->text, " %s=\"", name);
    pmlp__svg_length(p, value);
    pmlp__put_byte(&p->text, '"');
}

/* A rectangle whose tag the caller closes. */
static void pmlp__svg_box(pmlp__picture *p, const char *kind, double x, double y, double width,
                          double height) {
    pmlp__put(&p->text, "<rect class=\"%s\"", kind);
    pmlp__svg_attribute(p, "x", x);
    pmlp__svg_attribute(p, "y", y);
    pmlp__svg_attribute(p, "width", width);
    pmlp__svg_attribute(p, "height", height);
}

static void pmlp__svg_line(pmlp__picture *p, const char *kind, double x1, double y1, double x2,
                           double y2) {
    pmlp__put(&p->text, "<line class=\"%s\"", kind);
    pmlp__svg_attribute(p, "x1", x1);
    pmlp__svg_attribute(p, "y1", y1);
    pmlp__svg_attribute(p, "x2", x2);
    pmlp__svg_attribute(p, "y2", y2);
    pmlp__put_string(&p->text, "/>\n");
}

/* Text whose content and end the caller writes. */
static void pmlp__svg_text(pmlp__picture *p, const char *kind, double x, double y) {
    pmlp__put(&p->text, "<text class=\"%s\"", kind);
    pmlp__svg_attribute(p, "x", x);
    pmlp__svg_attribute(p, "y", y);
    pmlp__put_byte(&p->text, '>');
}

static void pmlp__svg_text_end(pmlp__picture *p) { pmlp__put_string(&p->text, "</text>\n"); }

/* A constant text; markup in it counts as such. */
static void pmlp__svg_say(pmlp__picture *p, const char *kind, double x, double y,
                          const char *string) {
    pmlp__svg_text(p, kind, x, y);
    pmlp__put_string(&p->text, string);
    pmlp__svg_text_end(p);
}

/* A text of the caller's, cut to what fits into `width` at that font size. */
static void pmlp__svg_quote(pmlp__picture *p, const char *string, double width, double font) {
    const int most = (int)(width / (font * PMLP__LETTER));
    pmlp__put_quoted(&p->text, string, most > 1 ? most : 1, false);
}

static const char *pmlp__picture_name(const pmlp__picture *p, int which) {
    return which ? p->label.against_name : p->label.name;
}

static void pmlp__svg_name(pmlp__picture *p, int which, int most) {
    pmlp__put_quoted(&p->text, pmlp__picture_name(p, which), most, false);
}

static void pmlp__put_time(pmlp__picture *p, double time) {
    pmlp__put_decimal(&p->text, time * p->label.scale, time == 0.0 ? 0 : p->decimals);
}

static void pmlp__put_unit(pmlp__picture *p) {
    if (!p->label.unit[0]) return;
    pmlp__put_string(&p->text, "&#160;");
    pmlp__put_quoted(&p->text, p->label.unit, 12, false);
}

static void pmlp__put_time_unit(pmlp__picture *p, double time) {
    pmlp__put_time(p, time);
    pmlp__put_unit(p);
}

static void pmlp__put_share(pmlp__picture *p, double part, double whole) {
    pmlp__put_decimal(&p->text, whole > 0.0 ? 100.0 * part / whole : 0.0, 1);
    pmlp__put_string(&p->text, "&#160;%");
}

/* Idle share of all workers. */
static double pmlp__bubble(const pmlp__picture *p, int which) {
    const pmlp_timeline *t = p->of[which];
    const double all = t->makespan * (double)t->workers;
    double busy = 0.0;
    int worker;
    for (worker = 0; worker < t->workers; worker++) busy += p->times[which][worker].busy;
    return all > 0.0 ? 1.0 - busy / all : 0.0;
}

/* --- rows of bars ----------------------------------------------------------------------------- */

/* Walks over what fills a row from 0 to the makespan: spans, and gaps, whose op is NONE. */
typedef struct pmlp__row {
    const pmlp_timeline *of;
    int worker, next;
    double clock;
} pmlp__row;

static bool pmlp__row_next(pmlp__row *row, pmlp_span *piece) {
    const pmlp_span *spans = row->of->spans[row->worker];
    const int count = row->of->counts[row->worker];
    double until;
    while (row->next < count && !pmlp__is_shown(&spans[row->next])) row->next++;
    until = row->next < count ? spans[row->next].begin : row->of->makespan;
    if (row->clock < until) {
        memset(piece, 0, sizeof *piece);
        piece->begin = row->clock;
        piece->end = row->clock = until;
        return true;
    }
    if (row->next == count) return false;
    *piece = spans[row->next++];
    row->clock = piece->end;
    return true;
}

static pmlp__row pmlp__row_begin(const pmlp__picture *p, int which, int worker) {
    pmlp__row row;
    row.of = p->of[which];
    row.worker = worker;
    row.next = 0;
    row.clock = 0.0;
    return row;
}

static int pmlp__shade(const pmlp__picture *p, int which, const pmlp_span *piece) {
    return piece->op == PMLP_OP_NONE ? 0 : p->chunk[which][piece->stage] % PMLP__SHADES;
}

/* The class of a piece's colour, "F0" or "idle". */
static void pmlp__put_class(pmlp__text *text, pmlp_op op, int shade) {
    if (op == PMLP_OP_NONE) pmlp__put_string(text, "idle");
    else pmlp__put(text, "%s%d", pmlp_op_name(op), shade);
}

/* What the reader sees who points at a bar. */
static void pmlp__svg_tooltip(pmlp__picture *p, const pmlp_span *piece) {
    pmlp__text *text = &p->text;
    const int last = piece->microbatch + piece->count - 1;
    pmlp__put_string(text, "<title>");
    if (piece->op == PMLP_OP_NONE) pmlp__put_string(text, "idle, ");
    else {
        pmlp__put(text, "%s%s of ", piece->ahead ? "what can be done ahead of " : "",
                  pmlp_op_name(piece->op));
        if (piece->count > 1) pmlp__put(text, "micro-batches %d to %d, ", piece->microbatch, last);
        else if (piece->microbatch >= 0) pmlp__put(text, "micro-batch %d, ", piece->microbatch);
        pmlp__put(text, "stage %d, ", piece->stage);
    }
    pmlp__put_time(p, piece->begin);
    pmlp__put_string(text, " to ");
    pmlp__put_time_unit(p, piece->end);
    pmlp__put_string(text, "</title>");
}

static int pmlp__digits(int number) {
    int digits = 1;
    for (; number > 9; number /= 10) digits++;
    return digits;
}

/* Size of the numbers in bars. */
static double pmlp__font(const pmlp__picture *p, int which) {
    return p->bar[which] * 0.6 < 13.0 ? p->bar[which] * 0.6 : 13.0;
}

/* The longest label that fits into a bar, perhaps none. Numbers count as wide as the
   largest: a row in which only 0 to 9 have labels looks broken. */
static void pmlp__bar_label(const pmlp__picture *p, int which, const pmlp_span *piece, char *label,
                            size_t size) {
    const pmlp_timeline *t = p->of[which];
    const double width = (piece->end - piece->begin) * p->per_time, font = pmlp__font(p, which);
    const int fit = (int)((width - 2.0) / (font * PMLP__DIGIT));
    int digits = pmlp__digits(t->microbatches - 1);
    char numbers[32];
    label[0] = '\0';
    if (piece->op == PMLP_OP_NONE || font < 7.0) return;
    snprintf(numbers, sizeof numbers, "%d", piece->microbatch);
    if (piece->microbatch < 0) snprintf(numbers, sizeof numbers, "U");
    if (piece->count > 1)
        snprintf(numbers, sizeof numbers, "%d-%d", piece->microbatch,
                 piece->microbatch + piece->count - 1);
    if (piece->microbatch < 0 || piece->count > 1) digits = (int)strlen(numbers);
    if (t->stages > t->workers && piece->microbatch >= 0 &&
        digits + 1 + pmlp__digits(t->stages - 1) <= fit)
        snprintf(label, size, "%d:%s", piece->stage, numbers);
    else if (digits <= fit) snprintf(label, size, "%s", numbers);
}

static void pmlp__svg_bar(pmlp__picture *p, int which, const pmlp_span *piece, double y) {
    const double x = pmlp__x(p, piece->begin), width = pmlp__x(p, piece->end) - x;
    const double gap = width < 4.0 ? 0.5 : 1.0; /* so that neighbours can be told apart */
    const double height = p->bar[which];
    char kind[16], label[48];
    pmlp__text text;
    text.buffer = kind;
    text.size = sizeof kind;
    text.length = 0;
    pmlp__put_class(&text, piece->op, pmlp__shade(p, which, piece));
    pmlp__text_end(&text, NULL);
    pmlp__svg_box(p, kind, x + gap / 2.0, y, width - gap, height);
    pmlp__put_string(&p->text, width > 8.0 ? " rx=\"2\">" : ">");
    pmlp__svg_tooltip(p, piece);
    pmlp__put_string(&p->text, "</rect>\n");
    pmlp__bar_label(p, which, piece, label, sizeof label);
    if (label[0])
        pmlp__svg_say(p, which ? "n n1" : "n", x + width / 2.0,
                      y + height / 2.0 + pmlp__font(p, which) * 0.36, label);
}

/* To a quarter of a pixel: however many bars there are, a row has only so many places. */
static double pmlp__snap(double x) { return pmlp__round(4.0 * x) / 4.0; }

/* All narrow pieces of one colour in a row, as one path. */
static void pmlp__svg_narrow(pmlp__picture *p, int which, int worker, pmlp_op op, int shade,
                             double y) {
    pmlp__row row = pmlp__row_begin(p, which, worker);
    pmlp_span piece;
    pmlp__put_string(&p->text, "<path class=\"");
    pmlp__put_class(&p->text, op, shade);
    pmlp__put_string(&p->text, "\" d=\"");
    while (pmlp__row_next(&row, &piece)) {
        const double x = pmlp__snap(pmlp__x(p, piece.begin));
        const double width = pmlp__snap(pmlp__x(p, piece.end)) - x;
        if (piece.op != op || pmlp__shade(p, which, &piece) != shade || width <= 0.0 ||
            (piece.end - piece.begin) * p->per_time >= PMLP__NARROW)
            continue;
        pmlp__put_byte(&p->text, 'M');
        pmlp__svg_length(p, x);
        pmlp__put_byte(&p->text, ' ');
        pmlp__svg_length(p, y);
        pmlp__put_byte(&p->text, 'h');
        pmlp__svg_length(p, width);
        pmlp__put_byte(&p->text, 'v');
        pmlp__svg_length(p, p->bar[which]);
        pmlp__put_byte(&p->text, 'h');
        pmlp__svg_length(p, -width);
        pmlp__put_byte(&p->text, 'z');
    }
    pmlp__put_string(&p->text, "\"/>\n");
}

static void pmlp__svg_row(pmlp__picture *p, int which, int worker, double y) {
    bool narrow[PMLP_OP_U + 1][PMLP__SHADES];
    pmlp__row row = pmlp__row_begin(p, which, worker);
    pmlp_span piece;
    int op, shade;
    memset(narrow, 0, sizeof narrow);
    while (pmlp__row_next(&row, &piece))
        if ((piece.end - piece.begin) * p->per_time >= PMLP__NARROW)
            pmlp__svg_bar(p, which, &piece, y);
        else narrow[piece.op][pmlp__shade(p, which, &piece)] = true;
    for (op = 0; op <= PMLP_OP_U; op++)
        for (shade = 0; shade < PMLP__SHADES; shade++)
            if (narrow[op][shade]) pmlp__svg_narrow(p, which, worker, (pmlp_op)op, shade, y);
}

/* The busy share, right of a row. */
static void pmlp__svg_busy(pmlp__picture *p, int which, int worker, double y) {
    pmlp__svg_text(p, which ? "e s m" : "e", (double)p->label.width - PMLP__MARGIN, y);
    pmlp__put_share(p, p->times[which][worker].busy, p->of[which]->makespan);
    pmlp__svg_text_end(p);
}

static double pmlp__rows_height(const pmlp__picture *p) {
    return p->bar[0] + (p->of[1] ? p->bar[1] + 2.0 : 0.0);
}

/* "stages 0, 4": the first two of a worker that has several. */
static void pmlp__svg_stages(pmlp__picture *p, int worker, double y) {
    const pmlp_timeline *t = p->of[0];
    int stage, n = 0;
    pmlp__svg_text(p, "s m", PMLP__MARGIN, y);
    for (stage = 0; stage < t->stages; stage++) {
        if (t->stage_worker[stage] != worker || ++n > 3) continue;
        pmlp__put_string(&p->text, n == 1 ? "stages " : n == 2 ? ", " : " &#8230;");
        if (n < 3) pmlp__put(&p->text, "%d", stage);
    }
    pmlp__svg_text_end(p);
}

/* One worker: label, bars, busy share; and below it the same of the other timeline. */
static void pmlp__svg_worker(pmlp__picture *p, int worker) {
    const double middle = p->y + pmlp__rows_height(p) / 2.0 + 4.0;
    const bool stages = !p->of[1] && p->shades > 1 && p->bar[0] >= 28.0;
    double y = p->y;
    int which;
    pmlp__svg_text(p, "", PMLP__MARGIN, stages ? middle - 7.0 : middle);
    pmlp__put(&p->text, "worker %d", worker);
    pmlp__svg_text_end(p);
    if (stages) pmlp__svg_stages(p, worker, middle + 8.0);
    for (which = 0; which < 2 && p->of[which]; which++) {
        const double base = y + p->bar[which] / 2.0 + 4.0;
        if (p->named) {
            pmlp__svg_text(p, "e s m", p->left - 8.0, base);
            pmlp__svg_name(p, which, 14);
            pmlp__svg_text_end(p);
        }
        pmlp__svg_row(p, which, worker, y);
        if (p->named || which == 0) pmlp__svg_busy(p, which, worker, p->named ? base : middle);
        y += p->bar[which] + 2.0;
    }
    p->y += pmlp__rows_height(p) + p->gap;
}

/* --- the axis --------------------------------------------------------------------------------- */

/* The largest of 1, 2, 5 times a power of ten that is not above `most`. */
static double pmlp__round_step(double most) {
    const double power = pow(10.0, floor(log10(most)));
    return power * (most / power >= 5.0 ? 5.0 : most / power >= 2.0 ? 2.0 : 1.0);
}

/* Lines behind the rows from `top` to `bottom`, and their times below. */
static void pmlp__svg_axis(pmlp__picture *p, double top, double bottom) {
    const double per_label = p->per_time / p->label.scale; /* pixels per unit of what is printed */
    double step;
    int i, decimals = 0;
    pmlp__svg_text(p, "e s m", p->left - 16.0, bottom + 18.0);
    pmlp__put_string(&p->text, p->label.unit[0] ? "time in " : "time");
    pmlp__put_quoted(&p->text, p->label.unit, 6, false);
    pmlp__svg_text_end(p);
    if (!(p->right > p->left) || !(per_label > 0.0)) return;
    step = pmlp__round_step(110.0 / per_label);
    if (step < 1.0) decimals = (int)ceil(-log10(step) - 1e-9);
    for (i = 0; (double)i * step * per_label <= p->right - p->left + 0.01; i++) {
        const double x = p->left + (double)i * step * per_label;
        pmlp__svg_line(p, "grid", x, top, x, bottom + 4.0);
        pmlp__svg_text(p, "c s m", x, bottom + 18.0);
        pmlp__put_decimal(&p->text, (double)i * step, i ? decimals : 0);
        pmlp__svg_text_end(p);
    }
}

/* A line where a timeline ends. */
static void pmlp__svg_ends(pmlp__picture *p, double top, double bottom) {
    int which;
    for (which = 0; which < 2 && p->of[which]; which++) {
        const double x = pmlp__x(p, p->of[which]->makespan) + 1.0;
        pmlp__svg_line(p, which ? "end other" : "end", x, top, x, bottom);
    }
}

static void pmlp__svg_plot(pmlp__picture *p) {
    const int workers = p->of[0]->workers;
    const double top = p->y, height = (double)workers * (pmlp__rows_height(p) + p->gap);
    const double bottom = top + height - p->gap + 4.0;
    int worker;
    pmlp__svg_axis(p, top - 4.0, bottom);
    pmlp__svg_say(p, "e s m", (double)p->label.width - PMLP__MARGIN, top - 8.0, "busy");
    for (worker = 0; worker < workers; worker++) pmlp__svg_worker(p, worker);
    pmlp__svg_ends(p, top - 4.0, bottom);
    p->y = bottom + 24.0;
}

/* --- title and legend ------------------------------------------------------------------------- */

static void pmlp__svg_title(pmlp__picture *p) {
    if (!p->label.title[0]) return;
    p->y += 20.0;
    pmlp__svg_text(p, "title", PMLP__MARGIN, p->y);
    pmlp__svg_quote(p, p->label.title, (double)p->label.width - 2.0 * PMLP__MARGIN, 20.0);
    pmlp__svg_text_end(p);
    p->y += 6.0;
}

/* What there is to say of one timeline alone. */
static void pmlp__svg_summary(pmlp__picture *p) {
    p->y += 18.0;
    pmlp__svg_text(p, "m", PMLP__MARGIN, p->y);
    if (p->label.name[0]) {
        pmlp__svg_name(p, 0, 40);
        pmlp__put_string(&p->text, ": ");
    }
    pmlp__put_string(&p->text, "makespan ");
    pmlp__put_time_unit(p, p->of[0]->makespan);
    pmlp__put_string(&p->text, ", bubble ");
    pmlp__put_share(p, pmlp__bubble(p, 0), 1.0);
    pmlp__svg_text_end(p);
}

/* Whether anything of that kind is to be seen. */
static bool pmlp__has_op(const pmlp__picture *p, pmlp_op op, int least_count) {
    int which, worker, i;
    for (which = 0; which < 2 && p->of[which]; which++)
        for (worker = 0; worker < p->of[which]->workers; worker++)
            for (i = 0; i < p->of[which]->counts[worker]; i++) {
                const pmlp_span *span = &p->of[which]->spans[worker][i];
                if (span->op == op && span->count >= least_count && pmlp__is_shown(span))
                    return true;
            }
    return false;
}

/* About how wide a text is in the fonts asked for, per font size. */
static double pmlp__width_of(const char *string) {
    double width = 0.0;
    for (; *string; string++)
        width += strchr(" ,.:;'-()fijlrt", *string)  ? 0.29
                 : strchr("mwABCDFGIUW=", *string) ? 0.72
                                                   : PMLP__DIGIT;
    return width;
}

/* An entry of the legend at *x, in a new line if this one is full; kind NULL: without a colour. */
static void pmlp__svg_entry(pmlp__picture *p, double *x, const char *kind, const char *string) {
    const double begin = kind ? 24.0 : 0.0;
    const double width = begin + pmlp__width_of(string) * 12.0 + 22.0;
    if (*x > PMLP__MARGIN && *x + width > (double)p->label.width - PMLP__MARGIN) {
        *x = PMLP__MARGIN;
        p->y += 20.0;
    }
    if (kind) {
        pmlp__svg_box(p, kind, *x, p->y - 10.0, 18.0, 12.0);
        pmlp__put_string(&p->text, " rx=\"2\"/>\n");
    }
    pmlp__svg_say(p, "s", *x + begin, p->y, string);
    *x += width;
}

/* Which row is which, if the rows have no room to say it. */
static void pmlp__svg_entry_names(pmlp__picture *p, double *x) {
    char string[256];
    pmlp__text text;
    text.buffer = string;
    text.size = sizeof string;
    text.length = 0;
    pmlp__put_quoted(&text, p->label.name, 14, false);
    pmlp__put_string(&text, " above ");
    pmlp__put_quoted(&text, p->label.against_name, 14, false);
    pmlp__text_end(&text, NULL);
    pmlp__svg_entry(p, x, NULL, string);
}

/* Whether any bar has room for its number, and for its stage, too, if `staged`. */
static bool pmlp__has_labels(const pmlp__picture *p, bool staged) {
    int which, worker, i;
    for (which = 0; which < 2 && p->of[which]; which++)
        for (worker = 0; worker < p->of[which]->workers; worker++)
            for (i = 0; i < p->of[which]->counts[worker]; i++) {
                const pmlp_span *span = &p->of[which]->spans[worker][i];
                char label[48];
                pmlp__bar_label(p, which, span, label, sizeof label);
                if (label[0] && span->microbatch >= 0 && (strchr(label, ':') != NULL) == staged)
                    return true;
            }
    return false;
}

static void pmlp__svg_legend(pmlp__picture *p) {
    static const char *const names[] = {"idle", "F: forward", "I: backward for the inputs",
                                        "W: backward for the weights", "B: backward", "U: update"};
    double x = PMLP__MARGIN;
    int op;
    p->y += 24.0;
    for (op = PMLP_OP_F; op <= PMLP_OP_U; op++)
        if (pmlp__has_op(p, (pmlp_op)op, 0)) {
            char kind[16];
            snprintf(kind, sizeof kind, "%s0", pmlp_op_name((pmlp_op)op));
            pmlp__svg_entry(p, &x, kind, names[op]);
        }
    if (pmlp__bubble(p, 0) > 1e-9 || (p->of[1] && pmlp__bubble(p, 1) > 1e-9))
        pmlp__svg_entry(p, &x, "idle", names[0]);
    if (p->shades > 1) pmlp__svg_entry(p, &x, "F1", "paler: later stages of the worker");
    if (pmlp__has_labels(p, false)) pmlp__svg_entry(p, &x, NULL, "number = micro-batch");
    if (pmlp__has_labels(p, true)) pmlp__svg_entry(p, &x, NULL, "2:5 = stage 2, micro-batch 5");
    if (pmlp__has_op(p, PMLP_OP_W, 2)) pmlp__svg_entry(p, &x, NULL, "0-3 = four at once");
    if (p->of[1] && !p->named) pmlp__svg_entry_names(p, &x);
    p->y += 30.0;
}

/* --- tables ----------------------------------------------------------------------------------- */

/* The next part of a sum, rounded so that the printed parts add up to the printed sum. */
static double pmlp__next_part(const pmlp__picture *p, double *sum, double part) {
    const double unit = pow(10.0, -(double)p->decimals) / p->label.scale;
    const double before = pmlp__round(*sum / unit);
    *sum += part;
    return (pmlp__round(*sum / unit) - before) * unit;
}

static double pmlp__column(const pmlp__picture *p, int column) {
    return p->column + p->column_width * (double)(column + 1);
}

/* A table's columns, whose numbers end at the right; its first one names the workers. */
static void pmlp__svg_heads(pmlp__picture *p, double begin, const char *const *heads,
                            int columns) {
    const double width = ((double)p->label.width - PMLP__MARGIN - begin) / (double)columns;
    int column;
    p->column = begin;
    p->column_width = width < 96.0 ? width : 96.0;
    p->y += 22.0;
    for (column = 0; column < columns; column++)
        pmlp__svg_say(p, "e s m", pmlp__column(p, column), p->y, heads[column]);
    p->y += 7.0;
    pmlp__svg_line(p, "rule", PMLP__MARGIN, p->y, pmlp__column(p, columns - 1), p->y);
    p->y += 1.0;
}

/* ", in ms": the end of a table's heading. */
static void pmlp__svg_heading_end(pmlp__picture *p) {
    if (p->label.unit[0]) pmlp__put_string(&p->text, ", in");
    pmlp__put_unit(p);
    pmlp__svg_text_end(p);
}

/* A worker's time in one timeline, its parts adding up to the makespan. */
static void pmlp__svg_time_row(pmlp__picture *p, int which, int worker) {
    const pmlp_worker_time *time = &p->times[which][worker];
    const char *kind = which ? "e m" : "e";
    double parts[5], sum = 0.0;
    int i;
    parts[0] = time->busy;
    parts[1] = time->fill;
    parts[2] = time->waiting;
    parts[3] = time->transfer;
    parts[4] = time->drain;
    p->y += 18.0;
    if (which == 0) {
        pmlp__svg_text(p, "", PMLP__MARGIN, p->y);
        pmlp__put(&p->text, "worker %d", worker);
        pmlp__svg_text_end(p);
    }
    if (p->of[1]) {
        pmlp__svg_text(p, which ? "e m" : "e", p->table - 8.0, p->y);
        pmlp__svg_name(p, which, 14);
        pmlp__svg_text_end(p);
    }
    for (i = 0; i < 5; i++) {
        pmlp__svg_text(p, kind, pmlp__column(p, i < 3 ? i : i + 1), p->y);
        pmlp__put_time(p, pmlp__next_part(p, &sum, parts[i]));
        pmlp__svg_text_end(p);
    }
    pmlp__svg_text(p, kind, pmlp__column(p, 3), p->y);
    if (time->waits_for >= 0) pmlp__put(&p->text, "%d", time->waits_for);
    else pmlp__put_string(&p->text, "&#8211;");
    pmlp__svg_text_end(p);
    pmlp__svg_text(p, kind, pmlp__column(p, 6), p->y);
    pmlp__put_amount(&p->text, time->peak);
    pmlp__svg_text_end(p);
}

static void pmlp__svg_times(pmlp__picture *p) {
    static const char *const heads[] = {"busy", "fill", "waiting", "for worker", "hand-off",
                                        "drain", "most held"};
    int which, worker;
    p->y += 28.0;
    pmlp__svg_text(p, "b", PMLP__MARGIN, p->y);
    pmlp__put_string(&p->text, "Where each worker's time went");
    pmlp__svg_heading_end(p);
    pmlp__svg_heads(p, p->table, heads, 7);
    for (worker = 0; worker < p->of[0]->workers; worker++) {
        for (which = 0; which < 2 && p->of[which]; which++) pmlp__svg_time_row(p, which, worker);
        if (p->of[1]) p->y += 3.0;
    }
    p->y += 6.0;
}

static void pmlp__parts(const pmlp_worker_time *time, bool merged, double *parts) {
    const double all[] = {time->f, time->i, time->w, time->b, time->u, time->fill, time->waiting,
                          time->transfer, time->drain};
    memcpy(parts, all, sizeof all);
    if (!merged) return;
    parts[3] += parts[1] + parts[2];
    parts[1] = parts[2] = 0.0;
}

/* -1 if the second timeline is the longer one. */
static double pmlp__sign(const pmlp__picture *p) {
    return p->of[0]->makespan < p->of[1]->makespan ? -1.0 : 1.0;
}

static int pmlp__largest(const double *parts, double sign) {
    int part, largest = 0;
    for (part = 1; part < PMLP__PARTS; part++)
        if (parts[part] * sign > parts[largest] * sign) largest = part;
    return largest;
}

/* What a worker's parts differ by, rounded so that they add up; and which of them counts most for
   the difference of the makespans. */
static int pmlp__differences(const pmlp__picture *p, int worker, double *parts) {
    double other[PMLP__PARTS], sum = 0.0;
    int i;
    pmlp__parts(&p->times[0][worker], p->merged, parts);
    pmlp__parts(&p->times[1][worker], p->merged, other);
    for (i = 0; i < PMLP__PARTS; i++) parts[i] = pmlp__next_part(p, &sum, parts[i] - other[i]);
    return pmlp__largest(parts, pmlp__sign(p));
}

/* A difference with its sign; a minus as wide as the plus. */
static void pmlp__put_signed(pmlp__picture *p, double time) {
    const double least = 0.25 * pow(10.0, -(double)p->decimals) / p->label.scale;
    if (fabs(time) < least) time = 0.0;
    if (time != 0.0) pmlp__put_string(&p->text, time > 0.0 ? "+" : "&#8722;");
    pmlp__put_time(p, fabs(time));
}

/* Whether a part is ever other than 0, in either timeline. */
static bool pmlp__has_part(const pmlp__picture *p, int part) {
    double parts[PMLP__PARTS];
    int which, worker;
    for (which = 0; which < 2; which++)
        for (worker = 0; worker < p->of[which]->workers; worker++) {
            pmlp__parts(&p->times[which][worker], p->merged, parts);
            if (parts[part] > 0.0) return true;
        }
    return false;
}

static const char *pmlp__part_name(const pmlp__picture *p, int part) {
    static const char *const names[] = {"forward", "I", "W", "B", "update", "fill", "waiting",
                                        "hand-off", "drain"};
    return part == 3 && p->merged ? "backward" : names[part];
}

/* shown [columns] are the parts that get a column; the sum comes last. */
static void pmlp__svg_difference_row(pmlp__picture *p, int worker, const int *shown, int columns) {
    double parts[PMLP__PARTS], sum = 0.0;
    const int most = pmlp__differences(p, worker, parts);
    int column;
    p->y += 18.0;
    pmlp__svg_text(p, "", PMLP__MARGIN, p->y);
    pmlp__put(&p->text, "worker %d", worker);
    pmlp__svg_text_end(p);
    for (column = 0; column <= columns; column++) {
        const bool strong = column < columns && shown[column] == most && parts[most] != 0.0;
        const double x = pmlp__column(p, column);
        if (strong) {
            pmlp__svg_box(p, "mark", x - 50.0, p->y - 13.0, 56.0, 17.0);
            pmlp__put_string(&p->text, " rx=\"3\"/>\n");
        }
        pmlp__svg_text(p, strong ? "e b" : "e", x, p->y);
        if (column < columns) sum += parts[shown[column]];
        pmlp__put_signed(p, column < columns ? parts[shown[column]] : sum);
        pmlp__svg_text_end(p);
    }
}

static void pmlp__svg_differences(pmlp__picture *p) {
    const char *heads[PMLP__PARTS + 1];
    int shown[PMLP__PARTS], columns = 0, part, worker;
    for (part = 0; part < PMLP__PARTS; part++)
        if (part == 0 || part >= 5 || pmlp__has_part(p, part)) {
            heads[columns] = pmlp__part_name(p, part);
            shown[columns++] = part;
        }
    heads[columns] = "sum";
    p->y += 28.0;
    pmlp__svg_text(p, "b", PMLP__MARGIN, p->y);
    pmlp__put_string(&p->text, "Where the difference went: ");
    pmlp__svg_name(p, 0, 20);
    pmlp__put_string(&p->text, " less ");
    pmlp__svg_name(p, 1, 20);
    pmlp__svg_heading_end(p);
    pmlp__svg_heads(p, PMLP__MARGIN + 64.0, heads, columns + 1);
    for (worker = 0; worker < p->of[0]->workers; worker++)
        pmlp__svg_difference_row(p, worker, shown, columns);
    p->y += 6.0;
}

/* The worker with the part that explains most. */
static int pmlp__telling_worker(const pmlp__picture *p) {
    double parts[PMLP__PARTS], best = 0.0;
    int worker, telling = 0;
    for (worker = 0; worker < p->of[0]->workers; worker++) {
        const int most = pmlp__differences(p, worker, parts);
        if (fabs(parts[most]) <= best) continue;
        best = fabs(parts[most]);
        telling = worker;
    }
    return telling;
}

static void pmlp__put_reason(pmlp__picture *p, int part, double difference) {
    pmlp__put(&p->text, "%s ", pmlp__part_name(p, part));
    pmlp__put_signed(p, difference);
}

/* "on worker 1: hand-off +0.06, forward +0.04; drain -0.01": what explains most of the difference,
   and what there is most against it. */
static void pmlp__svg_reasons(pmlp__picture *p, int worker) {
    const double sign = pmlp__sign(p);
    double parts[PMLP__PARTS];
    int most = pmlp__differences(p, worker, parts), n;
    if (parts[most] == 0.0) return;
    p->y += 18.0;
    pmlp__svg_text(p, "", PMLP__MARGIN, p->y);
    pmlp__put(&p->text, "on worker %d: ", worker);
    for (n = 0; n < 3 && parts[most] * sign > 0.0; n++) {
        if (n > 0) pmlp__put_string(&p->text, ", ");
        pmlp__put_reason(p, most, parts[most]);
        parts[most] = 0.0;
        most = pmlp__largest(parts, sign);
    }
    most = pmlp__largest(parts, -sign);
    if (parts[most] * sign < 0.0) {
        pmlp__put_string(&p->text, "; ");
        pmlp__put_reason(p, most, parts[most]);
    }
    pmlp__svg_text_end(p);
}

/* "measured 1.31 ms, simulated 1.12 ms: 0.19 ms more", why, and the bubbles. */
static void pmlp__svg_verdict(pmlp__picture *p) {
    const double more = p->of[0]->makespan - p->of[1]->makespan;
    int which;
    p->y += 20.0;
    pmlp__svg_text(p, "b", PMLP__MARGIN, p->y);
    for (which = 0; which < 2; which++) {
        pmlp__svg_name(p, which, 24);
        pmlp__put_byte(&p->text, ' ');
        pmlp__put_time_unit(p, p->of[which]->makespan);
        pmlp__put_string(&p->text, which ? ": " : ", ");
    }
    if (more == 0.0) pmlp__put_string(&p->text, "no difference");
    else pmlp__put_time_unit(p, fabs(more));
    if (more != 0.0) pmlp__put_string(&p->text, more < 0.0 ? " less" : " more");
    pmlp__svg_text_end(p);
    pmlp__svg_reasons(p, pmlp__telling_worker(p));
    p->y += 18.0;
    pmlp__svg_text(p, "m", PMLP__MARGIN, p->y);
    for (which = 0; which < 2; which++) {
        pmlp__put_string(&p->text, which ? ", " : "bubble: ");
        pmlp__svg_name(p, which, 24);
        pmlp__put_byte(&p->text, ' ');
        pmlp__put_share(p, pmlp__bubble(p, which), 1.0);
    }
    pmlp__svg_text_end(p);
}

/* --- the file --------------------------------------------------------------------------------- */

/* Okabe and Ito's colours, which stay apart for the colour-blind. Dark bands tell the ops apart in
   grey, too: I has one at the bottom, W at the top, B, which is I and W, both; U at its sides. */
static void pmlp__svg_gradient(pmlp__picture *p, pmlp_op op, int shade) {
    static const int colours[][3] = {{0, 0, 0},    {86, 180, 233}, {230, 159, 0},
                                     {0, 158, 115}, {213, 94, 0},   {204, 121, 167}};
    static const double pale[PMLP__SHADES] = {0.0, 0.4, 0.6, 0.75};
    const bool first = op != PMLP_OP_F && op != PMLP_OP_I;
    const bool last = op != PMLP_OP_F && op != PMLP_OP_W;
    const double at[] = {0.0, 0.12, 0.12, 0.88, 0.88, 1.0};
    int stop, i;
    pmlp__put(&p->text, "<linearGradient id=\"pmlp-%s%d\"", pmlp_op_name(op), shade);
    pmlp__put_string(&p->text, op == PMLP_OP_U ? ">" : " x2=\"0\" y2=\"1\">");
    for (stop = 0; stop < 6; stop++) {
        const double dark = (stop < 2 && first) || (stop > 3 && last) ? 0.66 : 1.0;
        pmlp__put_string(&p->text, "<stop");
        pmlp__svg_attribute(p, "offset", at[stop]);
        pmlp__put_string(&p->text, " stop-color=\"#");
        for (i = 0; i < 3; i++) {
            const double light = (double)colours[op][i] + (255.0 - colours[op][i]) * pale[shade];
            pmlp__put(&p->text, "%02x", (unsigned)(light * dark));
        }
        pmlp__put_string(&p->text, "\"/>");
    }
    pmlp__put_string(&p->text, "</linearGradient>\n");
}

static void pmlp__svg_style(pmlp__picture *p) {
    pmlp__put_string(&p->text,
        "<style>\n"
        ".pmlp{font:13px 'Helvetica Neue',Helvetica,Arial,'Liberation Sans',sans-serif;"
        "font-variant-numeric:tabular-nums}\n"
        ".pmlp text{fill:#1c2026;pointer-events:none}\n"
        ".pmlp .m{fill:#5a6370}\n"
        ".pmlp .s{font-size:12px}\n"
        ".pmlp .b{font-weight:bold}\n"
        ".pmlp .title{font-size:20px;font-weight:bold}\n"
        ".pmlp .e{text-anchor:end}\n"
        ".pmlp .c,.pmlp .n{text-anchor:middle}\n"
        ".pmlp .page{fill:#fff}\n"
        ".pmlp .grid{stroke:#d5d9df}\n"
        ".pmlp .rule{stroke:#9aa2ad}\n"
        ".pmlp .end{stroke:#1c2026;stroke-width:1.5}\n"
        ".pmlp .other{stroke-dasharray:4 3}\n"
        ".pmlp .mark{fill:#ffe9b0}\n"
        ".pmlp .ground{fill:#f4f5f7}\n"
        ".pmlp .hatch{stroke:#b4bbc5}\n"
        ".pmlp .idle{fill:url(#pmlp-idle)}\n");
    pmlp__put_string(&p->text,
        "@media (prefers-color-scheme:dark){\n"
        ".pmlp text{fill:#e8eaed}\n"
        ".pmlp .m{fill:#a3acb8}\n"
        ".pmlp .page{fill:#14171b}\n"
        ".pmlp .grid{stroke:#363c45}\n"
        ".pmlp .rule{stroke:#6b7480}\n"
        ".pmlp .end{stroke:#e8eaed}\n"
        ".pmlp .mark{fill:#5c4708}\n"
        ".pmlp .ground{fill:#1d2126}\n"
        ".pmlp .hatch{stroke:#4b535e}\n"
        "}\n");
}

/* Classes of the bars, and what they refer to. */
static void pmlp__svg_colours(pmlp__picture *p) {
    int op, shade, which;
    for (which = 0; which < 2 && p->of[which]; which++) {
        pmlp__put_string(&p->text,
                         which ? ".pmlp .n1{font-size:" : ".pmlp .n{fill:#111;font-size:");
        pmlp__svg_length(p, pmlp__font(p, which));
        pmlp__put_string(&p->text, "px}\n");
    }
    for (op = PMLP_OP_F; op <= PMLP_OP_U; op++)
        for (shade = 0; shade < p->shades; shade++)
            pmlp__put(&p->text, ".pmlp .%s%d{fill:url(#pmlp-%s%d)}\n", pmlp_op_name((pmlp_op)op),
                      shade, pmlp_op_name((pmlp_op)op), shade);
    pmlp__put_string(&p->text,
        "</style>\n<defs>\n"
        "<pattern id=\"pmlp-idle\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" "
        "patternTransform=\"rotate(45)\"><rect class=\"ground\" width=\"6\" height=\"6\"/>"
        "<line class=\"hatch\" x1=\"3\" y1=\"0\" x2=\"3\" y2=\"6\"/></pattern>\n");
    for (op = PMLP_OP_F; op <= PMLP_OP_U; op++)
        for (shade = 0; shade < p->shades; shade++) pmlp__svg_gradient(p, (pmlp_op)op, shade);
    pmlp__put_string(&p->text, "</defs>\n");
}

static void pmlp__svg_head(pmlp__picture *p, double height) {
    pmlp__put_string(&p->text, "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"pmlp\"");
    pmlp__put_string(&p->text, " role=\"img\"");
    pmlp__svg_attribute(p, "width", (double)p->label.width);
    pmlp__svg_attribute(p, "height", height);
    pmlp__put(&p->text, " viewBox=\"0 0 %d %.0f\">\n<title>", p->label.width, height);
    pmlp__put_quoted(&p->text, p->label.title[0] ? p->label.title : "Timeline", 200, false);
    pmlp__put_string(&p->text, "</title>\n<desc>");
    pmlp__put(&p->text, "%d workers, one row each, time to the right: ", p->of[0]->workers);
    pmlp__put_string(&p->text, "makespan ");
    pmlp__put_time_unit(p, p->of[0]->makespan);
    pmlp__put_string(&p->text, ", of which ");
    pmlp__put_share(p, pmlp__bubble(p, 0), 1.0);
    pmlp__put_string(&p->text, " idle. Tables below say why.</desc>\n");
    pmlp__svg_style(p);
    pmlp__svg_colours(p);
    pmlp__svg_box(p, "page", 0.0, 0.0, (double)p->label.width, height);
    pmlp__put_string(&p->text, "/>\n");
}

/* Returns the height that all needs. */
static double pmlp__svg_all(pmlp__picture *p, double height) {
    pmlp__svg_head(p, height);
    p->y = PMLP__MARGIN - 8.0;
    pmlp__svg_title(p);
    if (p->of[1]) pmlp__svg_verdict(p);
    else pmlp__svg_summary(p);
    pmlp__svg_legend(p);
    pmlp__svg_plot(p);
    pmlp__svg_times(p);
    if (p->of[1]) pmlp__svg_differences(p);
    pmlp__put_string(&p->text, "</svg>\n");
    return p->y + PMLP__MARGIN - 6.0;
}

/* Fewest decimals that show all times exactly, but no more than four digits of the longest. */
static int pmlp__picture_decimals(const pmlp__picture *p, double longest) {
    const double scale = p->label.scale;
    const int digits = longest > 0.0 ? 3 - (int)floor(log10(longest * scale)) : 0;
    const int most = digits < 0 ? 0 : digits > 12 ? 12 : digits;
    int which, worker, i, decimals = 0;
    for (which = 0; which < 2 && p->of[which]; which++)
        for (worker = 0; worker < p->of[which]->workers; worker++)
            for (i = 0; i < p->of[which]->counts[worker] && decimals < most; i++) {
                const int n = pmlp__decimals(p->of[which]->spans[worker][i].end * scale, most);
                if (n > decimals) decimals = n;
            }
    return decimals;
}

static void pmlp__picture_layout(pmlp__picture *p) {
    const int workers = p->of[0]->workers;
    const double height = workers <= 6 ? 36.0 : workers <= 12 ? 28.0 : workers <= 24 ? 20.0 : 14.0;
    double longest = p->of[0]->makespan;
    if (p->of[1] && p->of[1]->makespan > longest) longest = p->of[1]->makespan;
    p->bar[0] = p->of[1] ? floor(height * 0.8) : height;
    p->bar[1] = floor(height * 0.5);
    p->gap = p->of[1] ? floor(height / 3.0) : floor(height / 5.0);
    p->named = p->of[1] && p->bar[1] >= 10.0;
    p->left = PMLP__MARGIN + (p->named ? 160.0 : 88.0);
    p->table = PMLP__MARGIN + (p->of[1] ? 160.0 : 76.0);
    p->right = (double)p->label.width - PMLP__MARGIN - 62.0;
    p->per_time = longest > 0.0 ? (p->right - p->left) / longest : 0.0;
    p->decimals = pmlp__picture_decimals(p, longest);
}

/* Times and chunks of one timeline. False: no memory. */
static bool pmlp__picture_measure(pmlp__picture *p, int which) {
    const pmlp_timeline *t = p->of[which];
    const size_t stages = (size_t)t->stages, workers = (size_t)t->workers;
    int *seen, i;
    p->times[which] =
        (pmlp_worker_time *)pmlp__new(&p->of[0]->allocator, workers, sizeof **p->times);
    p->chunk[which] = (int *)pmlp__new(&p->of[0]->allocator, stages + workers, sizeof **p->chunk);
    if (!p->times[which] || !p->chunk[which]) return false;
    for (i = 0; i < t->workers; i++) {
        if (pmlp_timeline_worker(t, i, &p->times[which][i]) != PMLP_OK) return false;
        p->merged = p->merged || p->times[which][i].b > 0.0;
    }
    seen = p->chunk[which] + stages; /* stages of each worker so far */
    for (i = 0; i < t->stages; i++) {
        p->chunk[which][i] = seen[t->stage_worker[i]]++;
        if (p->chunk[which][i] >= p->shades) p->shades = p->chunk[which][i] + 1;
    }
    if (p->shades > PMLP__SHADES) p->shades = PMLP__SHADES;
    return true;
}

static void pmlp__picture_done(pmlp__picture *p) {
    int which;
    for (which = 0; which < 2; which++) {
        pmlp__delete(&p->of[0]->allocator, p->times[which]);
        pmlp__delete(&p->of[0]->allocator, p->chunk[which]);
    }
}

/* The caller's labels with the defaults put in. */
static pmlp_picture pmlp__picture_labels(const pmlp_picture *picture, bool two) {
    pmlp_picture label;
    memset(&label, 0, sizeof label);
    if (picture) label = *picture;
    if (!label.title) label.title = "";
    if (!label.name) label.name = two ? "measured" : "";
    if (!label.against_name) label.against_name = two ? "simulated" : "";
    if (!label.unit) label.unit = "";
    if (label.scale == 0.0) label.scale = 1.0;
    if (label.width == 0) label.width = 1200;
    return label;
}

/* What SVG and trace have in common: arguments, labels, the text. */
static pmlp_result pmlp__picture_begin(pmlp__picture *p, const pmlp_timeline *timeline,
                                       const pmlp_timeline *against, const pmlp_picture *picture,
                                       char *buffer, size_t size, pmlp_error *error) {
    double longest;
    memset(p, 0, sizeof *p);
    if (!timeline) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "timeline: is NULL");
    if (!buffer && size > 0) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "buffer: is NULL");
    if (against && against->workers != timeline->workers)
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "against: has %d workers, timeline has %d",
                          against->workers, timeline->workers);
    p->label = pmlp__picture_labels(picture, against != NULL);
    if (!(p->label.scale > 0.0 && p->label.scale <= DBL_MAX))
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "picture: scale %g is not a positive number",
                          p->label.scale);
    if (p->label.width < 640 || p->label.width > 100000)
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "picture: width %d is not in 640 .. 100000",
                          p->label.width);
    longest = against && against->makespan > timeline->makespan ? against->makespan
                                                                : timeline->makespan;
    if (longest > 0.0 && !(longest * p->label.scale > 1e-100 && longest * p->label.scale < 1e100))
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT,
                          "picture: %g times the scale %g is no time that can be printed", longest,
                          p->label.scale);
    p->of[0] = timeline;
    p->of[1] = against;
    p->text.buffer = buffer;
    p->text.size = size;
    return PMLP_OK;
}

PMLP_API pmlp_result pmlp_timeline_svg(const pmlp_timeline *timeline, const pmlp_timeline *against,
                                       const pmlp_picture *picture, char *buffer, size_t size,
                                       size_t *length, pmlp_error *error) {
    pmlp__picture p;
    const pmlp_result result =
        pmlp__picture_begin(&p, timeline, against, picture, buffer, size, error);
    double height;
    if (result != PMLP_OK) return result;
    if (!pmlp__picture_measure(&p, 0) || (against && !pmlp__picture_measure(&p, 1))) {
        pmlp__picture_done(&p);
        return pmlp__no_memory(error, "a picture");
    }
    pmlp__picture_layout(&p);
    p.text.size = 0; /* drawn twice, first to nowhere: its height stands at its top */
    height = pmlp__svg_all(&p, 0.0);
    p.text.size = size;
    p.text.length = 0;
    pmlp__svg_all(&p, height);
    pmlp__text_end(&p.text, length);
    pmlp__picture_done(&p);
    return PMLP_OK;
}

/* --- as a trace ------------------------------------------------------------------------------- */

/* Nanoseconds of the viewer's clock, which counts a printed unit as a millisecond. */
static double pmlp__trace_ns(const pmlp__picture *p, double time) {
    return pmlp__round(time * p->label.scale * 1e6);
}

/* Microseconds to three decimals: whole nanoseconds, so that neighbours meet. */
static void pmlp__trace_time(pmlp__picture *p, const char *name, double ns) {
    pmlp__put(&p->text, ",\"%s\":", name);
    pmlp__put_decimal(&p->text, ns / 1000.0, 3);
}

/* An event up to its time; the viewers keep thread 0 to themselves. */
static void pmlp__trace_event(pmlp__picture *p, const char *phase, int which, int worker) {
    pmlp__put(&p->text, ",\n{\"ph\":\"%s\",\"pid\":%d,\"tid\":%d", phase, which + 1, worker + 1);
}

static void pmlp__trace_span(pmlp__picture *p, int which, int worker, const pmlp_span *span) {
    char label[48];
    const double begin = pmlp__trace_ns(p, span->begin), end = pmlp__trace_ns(p, span->end);
    pmlp__draw_label(p->of[which], span, label, sizeof label);
    pmlp__trace_event(p, "X", which, worker);
    pmlp__trace_time(p, "ts", begin);
    pmlp__trace_time(p, "dur", end - begin);
    pmlp__put(&p->text, ",\"name\":\"%s\",\"cat\":\"%s\"", label, pmlp_op_name(span->op));
    pmlp__put(&p->text, ",\"args\":{\"stage\":%d,", span->stage);
    pmlp__put(&p->text, "\"microbatch\":%d,\"count\":%d}}", span->microbatch, span->count);
}

/* A hand-off's arrow. Its begin must lie inside the producer's bar, or it would be taken for one of
   what follows there. */
static void pmlp__trace_arrow(pmlp__picture *p, int which, const pmlp_span *from,
                              const pmlp_span *to, int id) {
    const int *stage_worker = p->of[which]->stage_worker;
    const char *name = to->op == PMLP_OP_F ? "activations" : "gradients";
    const double begin = pmlp__trace_ns(p, from->begin), end = pmlp__trace_ns(p, from->end);
    pmlp__trace_event(p, "s", which, stage_worker[from->stage]);
    pmlp__trace_time(p, "ts", end - begin >= 2.0 ? end - 1.0 : begin);
    pmlp__put(&p->text, ",\"name\":\"%s\",\"cat\":\"hand-off\",\"id\":%d}", name, id);
    pmlp__trace_event(p, "f", which, stage_worker[to->stage]);
    pmlp__trace_time(p, "ts", pmlp__trace_ns(p, to->begin));
    pmlp__put(&p->text, ",\"name\":\"%s\",\"cat\":\"hand-off\",\"id\":%d", name, id);
    pmlp__put_string(&p->text, ",\"bp\":\"e\"}");
}

/* The names of a timeline and its workers. */
static void pmlp__trace_names(pmlp__picture *p, int which) {
    const char *name = pmlp__picture_name(p, which);
    int worker;
    if (!name[0]) name = p->label.title[0] ? p->label.title : "pipeline";
    if (which) pmlp__put_string(&p->text, ",\n");
    pmlp__put(&p->text, "{\"ph\":\"M\",\"pid\":%d,\"name\":\"process_name\",", which + 1);
    pmlp__put_string(&p->text, "\"args\":{\"name\":\"");
    pmlp__put_quoted(&p->text, name, 200, true);
    pmlp__put_string(&p->text, "\"}}");
    pmlp__put(&p->text, ",\n{\"ph\":\"M\",\"pid\":%d,", which + 1);
    pmlp__put(&p->text, "\"name\":\"process_sort_index\",\"args\":{\"sort_index\":%d}}", which);
    for (worker = 0; worker < p->of[which]->workers; worker++) {
        pmlp__trace_event(p, "M", which, worker);
        pmlp__put(&p->text, ",\"name\":\"thread_name\",\"args\":{\"name\":\"worker %d\"}}", worker);
        pmlp__trace_event(p, "M", which, worker);
        pmlp__put(&p->text, ",\"name\":\"thread_sort_index\",");
        pmlp__put(&p->text, "\"args\":{\"sort_index\":%d}}", worker);
    }
}

/* Its spans, each with the arrow from what it needed. */
static void pmlp__trace_timeline(pmlp__picture *p, int which, int *id) {
    const pmlp_timeline *t = p->of[which];
    int worker, i;
    pmlp__trace_names(p, which);
    for (worker = 0; worker < t->workers; worker++)
        for (i = 0; i < t->counts[worker]; i++) {
            const pmlp_span *span = &t->spans[worker][i];
            const pmlp_span *needed = pmlp__needed(t, worker, span);
            if (!pmlp__is_shown(span)) continue;
            pmlp__trace_span(p, which, worker, span);
            if (needed && pmlp__is_shown(needed)) pmlp__trace_arrow(p, which, needed, span, ++*id);
        }
}

PMLP_API pmlp_result pmlp_timeline_trace(const pmlp_timeline *timeline,
                                         const pmlp_timeline *against, const pmlp_picture *picture,
                                         char *buffer, size_t size, size_t *length,
                                         pmlp_error *error) {
    pmlp__picture p;
    const pmlp_result result =
        pmlp__picture_begin(&p, timeline, against, picture, buffer, size, error);
    int id = 0;
    if (result != PMLP_OK) return result;
    pmlp__put_string(&p.text, "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n");
    pmlp__trace_timeline(&p, 0, &id);
    if (against) pmlp__trace_timeline(&p, 1, &id);
    pmlp__put_string(&p.text, "\n]}\n");
    pmlp__text_end(&p.text, length);
    return PMLP_OK;
}

/* --- into files ------------------------------------------------------------------------------- */

/* pmlp_timeline_svg or pmlp_timeline_trace */
typedef pmlp_result (*pmlp__picture_writer)(const pmlp_timeline *timeline,
                                            const pmlp_timeline *against,
                                            const pmlp_picture *picture, char *buffer, size_t size,
                                            size_t *length, pmlp_error *error);

static pmlp_result pmlp__file_failed(const char *path, const char *what, int reason,
                                     pmlp_error *error) {
    return pmlp__fail(error, PMLP_ERROR_FILE, "%s: cannot be %s%s%s", pmlp__path_end(path), what,
                      reason ? ": " : "", reason ? strerror(reason) : "");
}

/* All of it or nothing: what could only be written in part is removed. */
static pmlp_result pmlp__write_file(const char *path, const char *bytes, size_t size,
                                    pmlp_error *error) {
    FILE *file;
    bool written;
    int reason;
    errno = 0;
    file = fopen(path, "wb");
    if (!file) return pmlp__file_failed(path, "opened for writing", errno, error);
    written = fwrite(bytes, 1, size, file) == size;
    reason = written ? 0 : errno;
    if (fclose(file) != 0) {
        if (written) reason = errno;
        written = false;
    }
    if (written) return PMLP_OK;
    if (pmlp__is_file(path)) remove(path);
    return pmlp__file_failed(path, "written", reason, error);
}

static pmlp_result pmlp__write_picture(pmlp__picture_writer writer, const pmlp_timeline *timeline,
                                       const pmlp_timeline *against, const pmlp_picture *picture,
                                       const char *path, pmlp_error *error) {
    size_t length;
    char *text;
    pmlp_result result = writer(timeline, against, picture, NULL, 0, &length, error);
    if (result != PMLP_OK) return result;
    if (!path) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "path: is NULL");
    text = (char *)pmlp__new(&timeline->allocator, length + 1, 1);
    if (!text) return pmlp__no_memory(error, "a picture's text");
    result = writer(timeline, against, picture, text, length + 1, NULL, error);
    if (result == PMLP_OK) result = pmlp__write_file(path, text, length, error);
    pmlp__delete(&timeline->allocator, text);
    return result;
}

PMLP_API pmlp_result pmlp_timeline_write_svg(const pmlp_timeline *timeline,
                                             const pmlp_timeline *against,
                                             const pmlp_picture *picture, const char *path,
                                             pmlp_error *error) {
    return pmlp__write_picture(pmlp_timeline_svg, timeline, against, picture, path, error);
}

PMLP_API pmlp_result pmlp_timeline_write_trace(const pmlp_timeline *timeline,
                                               const pmlp_timeline *against,
                                               const pmlp_picture *picture, const char *path,
                                               pmlp_error *error) {
    return pmlp__write_picture(pmlp_timeline_trace, timeline, against, picture, path, error);
}

PMLP_API pmlp_result pmlp_schedule_draw(const pmlp_schedule *s, const pmlp_costs *costs,
                                        double unit, char *buffer, size_t size, size_t *length,
                                        pmlp_error *error) {
    pmlp_timeline *t;
    pmlp_result result = pmlp_schedule_timeline(s, costs, &t, error);
    if (result == PMLP_OK) result = pmlp_timeline_draw(t, unit, buffer, size, length, error);
    pmlp_timeline_destroy(t);
    return result;
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
    PMLP_EDGES_ABI, (uint32_t)sizeof(pmlp_edges), "threads", NULL, true, PMLP_TRANSPORT_SLOTS,
    pmlp__thread_connect, pmlp__thread_disconnect, pmlp__thread_reset, pmlp__thread_send,
    pmlp__thread_receive};

PMLP_API const pmlp_edges *pmlp_thread_edges(void) { return &pmlp__thread_edges_table; }

/*============================================================================================*/
/* >>thread-groups: ranks that are threads of one process                                     */
/*                                                                                            */
/* All ranks share one party. For a collective they meet: each posts what it brings, and the  */
/* last to come does the work of all. An edge is a box of messages with a lock, which both    */
/* its ends find by the channel's number. Whoever waits looks once a millisecond for an abort */
/* and at the clock.                                                                          */
/*============================================================================================*/

typedef struct pmlp__party pmlp__party;

/* What a rank brings to a meeting: of a collective, or of a sum. */
typedef struct pmlp__post {
    bool here;
    const char *what; /* the same for all: "gather", "broadcast", "sum" */
    int from;         /* the rank that a broadcast comes from, else 0 */
    size_t bytes;
    const void *mine;
    void *all;
} pmlp__post;

/* Where ranks wait for each other: all of them, or the replicas of one worker. */
typedef struct pmlp__meeting {
    struct pmlp__meeting *next;
    int worker; /* -1: all ranks */
    pmlp__mutex mutex;
    pmlp__cond cond;
    bool has_mutex, has_cond;
    int arrived, round;
    bool alike; /* did all of the last round bring the same? */
    pmlp__post *posts; /* [ranks] */
} pmlp__meeting;

/* A queue of messages, copied in and out. */
typedef struct pmlp__box {
    struct pmlp__box *next;
    pmlp__party *party;
    int channel, slots;
    pmlp_edge_desc from, to; /* as each end was described */
    bool has_from, has_to;   /* is that end connected now? */
    bool had_from, had_to;   /* has it ever been? */
    pmlp__mutex mutex;
    bool has_mutex;
    size_t message;          /* bytes of the largest */
    size_t *bytes;           /* [slots] */
    unsigned char *messages; /* [slots][message] */
    int first, count;
} pmlp__box;

/* One end of a box. */
typedef struct pmlp__box_end {
    pmlp__box *box;
    bool sends;
    int rank; /* whose it is */
} pmlp__box_end;

/* A rank's own view of the party. */
typedef struct pmlp__seat {
    pmlp__party *party;
    int rank;
    char why[400]; /* this rank's calls failed first */
} pmlp__seat;

struct pmlp__party {
    pmlp_allocator allocator;
    int ranks;
    pmlp__mutex mutex; /* of the lists below; taken before a box's */
    pmlp__mutex why_mutex; /* of all reasons; taken last */
    bool has_mutex, has_why_mutex;
    pmlp__atomic aborted;
    int aborter;
    char why[300];
    pmlp__meeting *all, *sums;
    pmlp__box *boxes;
    pmlp__seat *seats; /* [ranks] */
    pmlp_edges edges;
};

/* The first reason is the one that is told. */
static pmlp_result pmlp__seat_fail(pmlp__seat *seat, pmlp_result result, const char *format, ...)
    PMLP__FORMAT(3, 4);
static pmlp_result pmlp__seat_fail(pmlp__seat *seat, pmlp_result result, const char *format, ...) {
    pmlp__mutex_lock(&seat->party->why_mutex);
    if (seat->why[0] == '\0') {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(seat->why, sizeof seat->why, format, arguments);
        va_end(arguments);
    }
    pmlp__mutex_unlock(&seat->party->why_mutex);
    return result;
}

static pmlp_result pmlp__seat_aborted(pmlp__seat *seat) {
    pmlp__party *party = seat->party;
    return pmlp__seat_fail(seat, PMLP_ERROR_RANK, "rank %d failed: %s", party->aborter, party->why);
}

static void pmlp__party_abort(void *context, const char *why) {
    pmlp__seat *seat = (pmlp__seat *)context;
    pmlp__party *party = seat->party;
    pmlp__mutex_lock(&party->why_mutex);
    if (!pmlp__load(&party->aborted)) {
        party->aborter = seat->rank;
        snprintf(party->why, sizeof party->why, "%s", why);
        pmlp__store(&party->aborted, 1);
    }
    pmlp__mutex_unlock(&party->why_mutex);
}

static const char *pmlp__party_explain(void *context) { return ((pmlp__seat *)context)->why; }

/* --- meetings --------------------------------------------------------------------------------- */

static void pmlp__meeting_destroy(pmlp__party *party, pmlp__meeting *m) {
    if (!m) return;
    if (m->has_mutex) pmlp__mutex_done(&m->mutex);
    if (m->has_cond) pmlp__cond_done(&m->cond);
    pmlp__delete(&party->allocator, m->posts);
    pmlp__delete(&party->allocator, m);
}

static pmlp__meeting *pmlp__meeting_new(pmlp__party *party, int worker) {
    pmlp__meeting *m = (pmlp__meeting *)pmlp__new(&party->allocator, 1, sizeof *m);
    if (!m) return NULL;
    m->worker = worker;
    m->posts = (pmlp__post *)pmlp__new(&party->allocator, (size_t)party->ranks, sizeof *m->posts);
    m->has_mutex = pmlp__mutex_init(&m->mutex);
    m->has_cond = pmlp__cond_init(&m->cond);
    if (m->posts && m->has_mutex && m->has_cond) return m;
    pmlp__meeting_destroy(party, m);
    return NULL;
}

/* What all ranks came for, done for all of them by the last one. */
static void pmlp__meeting_serve(pmlp__meeting *m, int ranks) {
    const pmlp__post *first = NULL;
    size_t at;
    int i, k;
    m->alike = true;
    for (i = 0; i < ranks; i++) {
        const pmlp__post *p = &m->posts[i];
        if (!p->here) continue;
        if (!first) first = p;
        if (strcmp(p->what, first->what) != 0 || p->bytes != first->bytes || p->from != first->from)
            m->alike = false;
    }
    if (!m->alike || first->bytes == 0) return;
    if (m->worker >= 0) { /* a sum, in the order of the replicas */
        float *sum = (float *)first->all;
        for (i = 0; i < ranks; i++) {
            const float *more = (const float *)m->posts[i].mine;
            if (!m->posts[i].here || more == sum) continue;
            for (at = 0; at < first->bytes / sizeof *sum; at++) sum[at] += more[at];
        }
        for (i = 0; i < ranks; i++)
            if (m->posts[i].here && m->posts[i].all != sum)
                memcpy(m->posts[i].all, sum, first->bytes);
    } else if (strcmp(first->what, "gather") == 0) {
        for (i = 0; i < ranks; i++)
            for (k = 0; k < ranks; k++)
                memcpy((unsigned char *)m->posts[i].all + (size_t)k * first->bytes,
                       m->posts[k].mine, first->bytes);
    } else {
        for (i = 0; i < ranks; i++)
            if (i != first->from)
                memcpy(m->posts[i].all, m->posts[first->from].mine, first->bytes);
    }
}

/* The rank that is not here; -1: nobody knows. */
static int pmlp__meeting_lacks(const pmlp__meeting *m, int ranks) {
    int i;
    for (i = 0; m->worker < 0 && i < ranks; i++)
        if (!m->posts[i].here) return i;
    return -1;
}

static pmlp_result pmlp__meet(pmlp__seat *seat, pmlp__meeting *m, int expected,
                              const pmlp__post *post, double seconds) {
    pmlp__party *party = seat->party;
    const double begin = pmlp__clock();
    int round, lacks = -1, i;
    bool met, alike;
    pmlp__mutex_lock(&m->mutex);
    round = m->round;
    m->posts[seat->rank] = *post;
    if (++m->arrived == expected && !pmlp__load(&party->aborted)) {
        pmlp__meeting_serve(m, party->ranks);
        for (i = 0; i < party->ranks; i++) m->posts[i].here = false;
        m->arrived = 0;
        m->round++;
        pmlp__cond_signal_all(&m->cond);
    }
    while (m->round == round && !pmlp__load(&party->aborted) && pmlp__clock() - begin < seconds)
        pmlp__cond_wait_1ms(&m->cond, &m->mutex);
    met = m->round != round;
    alike = m->alike; /* the next round cannot end without this rank */
    if (!met) {
        lacks = pmlp__meeting_lacks(m, party->ranks);
        m->posts[seat->rank].here = false;
        m->arrived--;
    }
    pmlp__mutex_unlock(&m->mutex);
    if (met && alike) return PMLP_OK;
    if (met)
        return pmlp__seat_fail(seat, PMLP_ERROR_RANK,
                               "the ranks are not at the same place: here, a %s of %.0f bytes",
                               post->what, (double)post->bytes);
    if (pmlp__load(&party->aborted)) return pmlp__seat_aborted(seat);
    if (lacks < 0)
        return pmlp__seat_fail(seat, PMLP_ERROR_RANK,
                               "rank %d waited %g s for other replicas in a %s", seat->rank,
                               seconds, post->what);
    return pmlp__seat_fail(seat, PMLP_ERROR_RANK, "rank %d waited %g s for rank %d in a %s",
                           seat->rank, seconds, lacks, post->what);
}

static pmlp__post pmlp__post_of(const char *what, const void *mine, void *all, size_t bytes) {
    pmlp__post post;
    memset(&post, 0, sizeof post);
    post.here = true;
    post.what = what;
    post.bytes = bytes;
    post.mine = mine;
    post.all = all;
    return post;
}

static pmlp_result pmlp__party_gather(void *context, const void *mine, size_t bytes, void *all,
                                      double seconds) {
    pmlp__seat *seat = (pmlp__seat *)context;
    const pmlp__post post = pmlp__post_of("gather", mine, all, bytes);
    return pmlp__meet(seat, seat->party->all, seat->party->ranks, &post, seconds);
}

static pmlp_result pmlp__party_broadcast(void *context, int from_rank, void *data, size_t bytes,
                                         double seconds) {
    pmlp__seat *seat = (pmlp__seat *)context;
    pmlp__post post = pmlp__post_of("broadcast", data, data, bytes);
    post.from = from_rank;
    return pmlp__meet(seat, seat->party->all, seat->party->ranks, &post, seconds);
}

/* Where the replicas of a worker meet; made by the first that comes. */
static pmlp__meeting *pmlp__sum_meeting(pmlp__party *party, int worker) {
    pmlp__meeting *m;
    pmlp__mutex_lock(&party->mutex);
    for (m = party->sums; m && m->worker != worker; m = m->next) continue;
    if (!m && (m = pmlp__meeting_new(party, worker)) != NULL) {
        m->next = party->sums;
        party->sums = m;
    }
    pmlp__mutex_unlock(&party->mutex);
    return m;
}

static pmlp_result pmlp__party_sum(void *context, int worker, int replicas, void *backend_context,
                                   float *data, size_t floats, double seconds) {
    pmlp__seat *seat = (pmlp__seat *)context;
    pmlp__meeting *m = pmlp__sum_meeting(seat->party, worker);
    const pmlp__post post = pmlp__post_of("sum", data, data, floats * sizeof *data);
    (void)backend_context;
    if (!m) return pmlp__seat_fail(seat, PMLP_ERROR_MEMORY, "out of memory for a sum");
    return pmlp__meet(seat, m, replicas, &post, seconds);
}

/* --- boxes ------------------------------------------------------------------------------------ */

static void pmlp__box_destroy(pmlp__box *box) {
    const pmlp_allocator allocator = box->party->allocator;
    if (box->has_mutex) pmlp__mutex_done(&box->mutex);
    pmlp__delete(&allocator, box->bytes);
    pmlp__delete(&allocator, box->messages);
    pmlp__delete(&allocator, box);
}

static pmlp__box *pmlp__box_new(pmlp__party *party, const pmlp_edge_desc *desc) {
    const size_t slots = (size_t)desc->slots;
    pmlp__box *box = (pmlp__box *)pmlp__new(&party->allocator, 1, sizeof *box);
    if (!box) return NULL;
    box->party = party;
    box->channel = desc->channel;
    box->slots = desc->slots;
    box->from = box->to = *desc;
    box->has_mutex = pmlp__mutex_init(&box->mutex);
    box->bytes = (size_t *)pmlp__new(&party->allocator, slots, sizeof *box->bytes);
    if (!pmlp__mul_overflows(desc->row_bytes, desc->max_rows)) {
        box->message = desc->row_bytes * desc->max_rows;
        box->messages = (unsigned char *)pmlp__new(&party->allocator, slots, box->message);
    }
    if (box->has_mutex && box->bytes && box->messages) return box;
    pmlp__box_destroy(box);
    return NULL;
}

/* The box of a channel; with the party's mutex. */
static pmlp__box *pmlp__box_find(pmlp__party *party, const pmlp_edge_desc *desc) {
    pmlp__box *box;
    for (box = party->boxes; box && box->channel != desc->channel; box = box->next) continue;
    if (!box && (box = pmlp__box_new(party, desc)) != NULL) {
        box->next = party->boxes;
        party->boxes = box;
    }
    return box;
}

/* Makes an end of the channel's box that one; false if it has one. With the party's mutex. */
static bool pmlp__box_take(pmlp__box *box, const pmlp_edge_desc *desc, bool sends) {
    bool *const has = sends ? &box->has_from : &box->has_to;
    bool is_free;
    pmlp__mutex_lock(&box->mutex);
    is_free = !*has;
    if (is_free) {
        *(sends ? &box->from : &box->to) = *desc;
        *(sends ? &box->had_from : &box->had_to) = *has = true;
    }
    pmlp__mutex_unlock(&box->mutex);
    return is_free;
}

static pmlp_result pmlp__box_connect(const pmlp_edges *self, const pmlp_edge_desc *desc,
                                     void **edge, pmlp_error *error) {
    pmlp__party *party = ((const pmlp__seat *)self->user)->party;
    pmlp__box_end *end = (pmlp__box_end *)pmlp__new(&party->allocator, 1, sizeof *end);
    pmlp__box *box = NULL;
    bool taken = false;
    pmlp__mutex_lock(&party->mutex);
    if (end) box = pmlp__box_find(party, desc);
    if (box) taken = !pmlp__box_take(box, desc, desc->from_wake != NULL);
    pmlp__mutex_unlock(&party->mutex);
    if (!box || taken) {
        pmlp__delete(&party->allocator, end);
        return taken ? pmlp__fail(error, PMLP_ERROR_STATE, "the group has a trainer already")
                     : pmlp__no_memory(error, "an edge between ranks");
    }
    end->box = box;
    end->sends = desc->from_wake != NULL;
    end->rank = end->sends ? desc->from_rank : desc->to_rank;
    *edge = end;
    return PMLP_OK;
}

/* The box goes with its second end. */
static void pmlp__box_disconnect(void *edge) {
    pmlp__box_end *end = (pmlp__box_end *)edge;
    pmlp__box *box = end->box, **at;
    pmlp__party *party = box->party;
    bool unused;
    pmlp__mutex_lock(&party->mutex);
    pmlp__mutex_lock(&box->mutex);
    *(end->sends ? &box->has_from : &box->has_to) = false;
    unused = !box->has_from && !box->has_to;
    pmlp__mutex_unlock(&box->mutex);
    if (unused) {
        for (at = &party->boxes; *at != box;) at = &(*at)->next;
        *at = box->next;
    }
    pmlp__mutex_unlock(&party->mutex);
    if (unused) pmlp__box_destroy(box);
    pmlp__delete(&party->allocator, end);
}

/* What a pass has sent it has also received. */
static pmlp_result pmlp__box_reset(void *edge) {
    (void)edge;
    return PMLP_OK;
}

/* Why the other end will never do its part; PMLP_BUSY: it will. */
static pmlp_result pmlp__box_ended(const pmlp__box_end *end, bool gone, int other) {
    pmlp__party *party = end->box->party;
    pmlp__seat *seat = &party->seats[end->rank];
    if (pmlp__load(&party->aborted)) return pmlp__seat_aborted(seat);
    if (gone) return pmlp__seat_fail(seat, PMLP_ERROR_RANK, "rank %d has left", other);
    return PMLP_BUSY;
}

static pmlp_result pmlp__box_send(void *edge, int microbatch, const void *data, size_t bytes) {
    pmlp__box_end *end = (pmlp__box_end *)edge;
    pmlp__box *box = end->box;
    pmlp_result result;
    (void)microbatch;
    pmlp__mutex_lock(&box->mutex);
    result = pmlp__box_ended(end, box->had_to && !box->has_to, box->to.to_rank);
    if (result == PMLP_BUSY && bytes > box->message) {
        result = pmlp__seat_fail(&box->party->seats[end->rank], PMLP_ERROR_RANK,
                                 "a message of %.0f bytes is larger than was agreed on",
                                 (double)bytes);
    } else if (result == PMLP_BUSY && box->count < box->slots) {
        const size_t at = (size_t)((box->first + box->count++) % box->slots);
        if (bytes) memcpy(box->messages + at * box->message, data, bytes);
        box->bytes[at] = bytes;
        if (box->has_to) box->to.wake(box->to.to_wake);
        result = PMLP_OK;
    }
    pmlp__mutex_unlock(&box->mutex);
    return result;
}

static pmlp_result pmlp__box_receive(void *edge, int microbatch, void *data, size_t bytes) {
    pmlp__box_end *end = (pmlp__box_end *)edge;
    pmlp__box *box = end->box;
    pmlp_result result = PMLP_OK;
    (void)microbatch;
    pmlp__mutex_lock(&box->mutex);
    if (box->count == 0) {
        result = pmlp__box_ended(end, box->had_from && !box->has_from, box->from.from_rank);
    } else if (box->bytes[box->first] != bytes) {
        result = pmlp__seat_fail(&box->party->seats[end->rank], PMLP_ERROR_RANK,
                                 "rank %d sent %.0f bytes, not %.0f", box->from.from_rank,
                                 (double)box->bytes[box->first], (double)bytes);
    } else {
        if (bytes) memcpy(data, box->messages + (size_t)box->first * box->message, bytes);
        box->first = (box->first + 1) % box->slots;
        box->count--;
        if (box->has_from) box->from.wake(box->from.from_wake);
    }
    pmlp__mutex_unlock(&box->mutex);
    return result;
}

/* --- the groups ------------------------------------------------------------------------------- */

static void pmlp__party_destroy(pmlp__party *party) {
    const pmlp_allocator allocator = party->allocator;
    pmlp__meeting_destroy(party, party->all);
    while (party->sums) {
        pmlp__meeting *m = party->sums;
        party->sums = m->next;
        pmlp__meeting_destroy(party, m);
    }
    if (party->has_mutex) pmlp__mutex_done(&party->mutex);
    if (party->has_why_mutex) pmlp__mutex_done(&party->why_mutex);
    pmlp__delete(&allocator, party->seats);
    pmlp__delete(&allocator, party);
}

static void pmlp__party_edges(pmlp__party *party) {
    pmlp_edges *e = &party->edges;
    e->abi = PMLP_EDGES_ABI;
    e->size = (uint32_t)sizeof *e;
    e->name = "threads of several ranks";
    e->user = party->seats;
    e->shared = false;
    e->transport = PMLP_TRANSPORT_SLOTS;
    e->connect = pmlp__box_connect;
    e->disconnect = pmlp__box_disconnect;
    e->reset = pmlp__box_reset;
    e->send = pmlp__box_send;
    e->receive = pmlp__box_receive;
}

static void pmlp__party_table(pmlp__party *party, int rank, pmlp_group *group) {
    party->seats[rank].party = party;
    party->seats[rank].rank = rank;
    memset(group, 0, sizeof *group);
    group->abi = PMLP_GROUP_ABI;
    group->size = (uint32_t)sizeof *group;
    group->name = "threads";
    group->rank = rank;
    group->ranks = party->ranks;
    group->context = &party->seats[rank];
    group->host = true;
    group->edges = &party->edges;
    group->gather = pmlp__party_gather;
    group->broadcast = pmlp__party_broadcast;
    group->sum = pmlp__party_sum;
    group->abort = pmlp__party_abort;
    group->explain = pmlp__party_explain;
}

PMLP_API pmlp_result pmlp_thread_groups_create(int ranks, const pmlp_allocator *allocator,
                                               pmlp_group *groups, pmlp_error *error) {
    const pmlp_allocator from = pmlp__allocator_or_default(allocator);
    pmlp__party *party;
    int i;
    if (!groups) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "groups: is NULL");
    if (ranks < 1 || ranks > PMLP__MAX_WORKERS)
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "ranks: %d is not in 1 .. %d", ranks,
                          PMLP__MAX_WORKERS);
    if (pmlp__is_half(&from))
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT,
                          "allocator: has only one of alloc and free");
    memset(groups, 0, (size_t)ranks * sizeof *groups);
    party = (pmlp__party *)pmlp__new(&from, 1, sizeof *party);
    if (!party) return pmlp__no_memory(error, "a group");
    party->allocator = from;
    party->ranks = ranks;
    party->seats = (pmlp__seat *)pmlp__new(&from, (size_t)ranks, sizeof *party->seats);
    party->has_mutex = pmlp__mutex_init(&party->mutex);
    party->has_why_mutex = pmlp__mutex_init(&party->why_mutex);
    party->all = pmlp__meeting_new(party, -1);
    if (!party->seats || !party->has_mutex || !party->has_why_mutex || !party->all) {
        pmlp__party_destroy(party);
        return pmlp__no_memory(error, "a group");
    }
    pmlp__party_edges(party);
    for (i = 0; i < ranks; i++) pmlp__party_table(party, i, &groups[i]);
    return PMLP_OK;
}

PMLP_API void pmlp_thread_groups_destroy(pmlp_group *groups) {
    if (groups && groups->context) pmlp__party_destroy(((pmlp__seat *)groups->context)->party);
    if (groups) groups->context = NULL;
}

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
                          : "the model's weights are lost: its trainer failed");
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
    *hash = pmlp__hash_floats(0, model->params, model->param_count);
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
    d.versions = 1;
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
    pmlp_data data;
    pmlp_result result;
    size_t i;
    int l;
    memset(&data, 0, sizeof data);
    data.x = x;
    result = p->cpu->input(p->context, rows, pmlp__n_in(model, 0), &data, NULL, first, in);
    for (l = 0; result == PMLP_OK && l < layers; l++) {
        float *read = out;
        result = p->cpu->forward(p->context, p->layers[l], 0, rows, in, out);
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

/* What one output of a layer costs; multiply-adds per row: F, I, W; the first layer's I is never
   needed. */
static double pmlp__output_cost(const pmlp_model *model, const double *layer_costs, int layer) {
    if (layer_costs) return layer_costs[layer] / (double)pmlp__n_out(model, layer);
    return (layer == 0 ? 2.0 : 3.0) * (double)pmlp__n_in(model, layer);
}

/* A place where a boundary may lie, with the cost of all that is below it. */
typedef struct pmlp__place {
    pmlp_cut cut;
    double below;
} pmlp__place;

/* All of them in ascending order, from {0, 0} to {layers, 0}; returns how many. places may be
   NULL. */
static size_t pmlp__places(const pmlp_model *model, bool whole_layers, const double *layer_costs,
                           pmlp__place *places) {
    double below = 0.0;
    size_t count = 0, column;
    int l;
    for (l = 0; l <= model->desc.layers; l++) {
        const bool top = l == model->desc.layers;
        const size_t outputs = top ? 0 : pmlp__n_out(model, l);
        const double each = top ? 0.0 : pmlp__output_cost(model, layer_costs, l);
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

/* A stage that begins inside layer 0 reads the input once more, which is as much work as so many of
   its outputs. */
#define PMLP__INPUT_COLUMNS 4

/* The best way to make stages of what lies above a place. */
typedef struct pmlp__division {
    double worst;  /* the largest cost of one */
    size_t end;    /* where the first ends, */
    size_t inside; /* and how many of the others begin inside layer 0 */
} pmlp__division;

/* Dynamic programming over places and stages: best[s][i] is for S - s stages of what lies above
   place i. To end the first of them at place e makes the costlier of (i .. e) and the best of the
   rest. With a cap on the cost of a stage, the division with the fewest cuts inside layer 0 that
   keeps to it, among these the one whose costliest stage is cheapest; without one, HUGE_VAL, just
   the latter. Filled from the last stage down. */
static void pmlp__partition_table(const pmlp__place *places, size_t count, size_t stages,
                                  double cap, pmlp__division *best) {
    size_t s = stages, i, e;
    while (s-- > 0)
        for (i = s; i + (stages - s) < count; i++) {
            const size_t after = stages - 1 - s; /* stages that still need a place each */
            const size_t lowest = after ? i + 1 : count - 1;
            pmlp__division *at = &best[s * count + i];
            at->worst = HUGE_VAL;
            at->inside = SIZE_MAX;
            for (e = lowest; e < count - after; e++) {
                const pmlp__division *rest = after ? at + count + e - i : NULL;
                const double own = places[e].below - places[i].below;
                pmlp__division d;
                if (own > cap || (cap == HUGE_VAL && own >= at->worst)) break; /* it only grows */
                d.worst = rest && rest->worst > own ? rest->worst : own;
                d.end = e;
                d.inside = rest && cap < HUGE_VAL ? rest->inside + (places[e].cut.column > 0) : 0;
                if (d.worst > cap || d.inside > at->inside ||
                    (d.inside == at->inside && d.worst >= at->worst))
                    continue;
                *at = d;
            }
        }
}

/* Every layer costs something, and their sum is a number; costs may be NULL. */
static pmlp_result pmlp__check_layer_costs(const pmlp_model *model, const double *costs,
                                           pmlp_error *error) {
    int l;
    for (l = 0; costs && l < model->desc.layers; l++)
        if (!(costs[l] >= 1e-100) || pmlp__bad_cost(costs[l]))
            return pmlp__fail(error, PMLP_ERROR_ARGUMENT,
                              "layer_costs: are not numbers above 0 for each of the %d layers",
                              model->desc.layers);
    return PMLP_OK;
}

PMLP_API pmlp_result pmlp_partition(const pmlp_model *model, int stages, bool whole_layers,
                                    const double *layer_costs, pmlp_cut *cuts, double *balance,
                                    pmlp_error *error) {
    const double input = PMLP__INPUT_COLUMNS;
    pmlp__place *places;
    pmlp__division *best;
    size_t count, i = 0;
    pmlp_result result;
    bool ok;
    int s;
    if (!model) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "model: is NULL");
    if (stages < 1)
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "stages: %d is less than 1", stages);
    if (!cuts && stages > 1) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "cuts: is NULL");
    result = pmlp__check_layer_costs(model, layer_costs, error);
    if (result != PMLP_OK) return result;
    count = pmlp__places(model, whole_layers, layer_costs, NULL);
    if ((size_t)stages >= count)
        return pmlp__fail(error, PMLP_ERROR_SHAPE,
                          "the %d layers of the model can be cut into %d stages at most, not %d",
                          model->desc.layers, (int)count - 1, stages);
    places = (pmlp__place *)pmlp__new(&model->desc.allocator, count, sizeof *places);
    best = (pmlp__division *)pmlp__new(&model->desc.allocator, count * (size_t)stages,
                                       sizeof *best);
    ok = places && best;
    if (ok) {
        pmlp__places(model, whole_layers, layer_costs, places);
        pmlp__partition_table(places, count, (size_t)stages, HUGE_VAL, best);
        pmlp__partition_table(places, count, (size_t)stages,
                              best[0].worst + input * pmlp__output_cost(model, layer_costs, 0),
                              best);
        for (s = 0; s < stages - 1; s++) {
            i = best[(size_t)s * count + i].end;
            cuts[s] = places[i].cut;
        }
        if (balance) *balance = places[count - 1].below / (best[0].worst * (double)stages);
    }
    pmlp__delete(&model->desc.allocator, places);
    pmlp__delete(&model->desc.allocator, best);
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
           b->gradient && b->synchronize;
}

static bool pmlp__is_edges(const pmlp_edges *e) {
    return e->abi == PMLP_EDGES_ABI && e->size == (uint32_t)sizeof *e;
}

static bool pmlp__is_whole_edges(const pmlp_edges *e) {
    return e->connect && e->disconnect && e->reset && e->send && e->receive;
}

#define PMLP__BAD(condition, field, why)                                                           \
    pmlp__problem(p, condition, PMLP_ERROR_ARGUMENT, field, why)

static void pmlp__validate_numbers(const pmlp_trainer_desc *d, pmlp__problems *p) {
    static const char number[] = "is not a finite number >= 0";
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
    PMLP__BAD(d->virtual_stages < 0 || d->virtual_stages > PMLP__MAX_WORKERS, "virtual_stages",
              "is not in 1 .. 16384");
    PMLP__BAD((int)d->bad_numbers < 0 || d->bad_numbers >= PMLP_BAD_NUMBERS_COUNT, "bad_numbers",
              "is no value of its type");
    PMLP__BAD(d->slots < 0, "slots", "is negative");
    PMLP__BAD(d->trace < 0 || d->trace > 65536, "trace", "is not in 0 .. 65536");
    PMLP__BAD(!(d->memory >= 0.0), "memory", "is negative or not a number");
    PMLP__BAD(pmlp__is_half(&d->allocator), "allocator", "has only one of alloc and free");
}

static void pmlp__validate_schedule(const pmlp_trainer_desc *d, pmlp__problems *p) {
    PMLP__BAD(d->custom && d->custom->per_update, "custom",
              "is asynchronous; only the built kinds can be that");
    PMLP__BAD(d->custom && d->custom->lowered, "custom",
              "has been lowered; the trainer does that itself");
    PMLP__BAD(!d->custom && pmlp__is_asynchronous(d->schedule) &&
                  d->microbatches > PMLP__MAX_MICROBATCHES / 8,
              "microbatches", "is not in 1 .. 131072, as asynchronous schedules want it");
    PMLP__BAD(!d->custom && pmlp__is_asynchronous(d->schedule) && d->clip_norm > 0.0f, "clip_norm",
              "wants the whole gradient, which an asynchronous schedule never has at once");
    PMLP__BAD(!d->custom && pmlp__is_asynchronous(d->schedule) &&
                  d->bad_numbers == PMLP_BAD_NUMBERS_SKIP,
              "bad_numbers", "of an asynchronous schedule are in the weights when they are found");
}

/* A group that can be called at all. */
static bool pmlp__is_whole_group(const pmlp_group *g) {
    return g->abi == PMLP_GROUP_ABI && g->size == (uint32_t)sizeof *g && g->gather &&
           g->broadcast && g->abort && g->edges && g->ranks >= 1 &&
           g->ranks <= PMLP__MAX_WORKERS && g->rank >= 0 && g->rank < g->ranks;
}

static void pmlp__validate_group(const pmlp_trainer_desc *d, pmlp__problems *p) {
    const pmlp_group *g = d->group;
    const int replicas = d->replicas > 1 ? d->replicas : 1;
    const bool exact = !d->backend || d->backend->exact;
    int workers = d->workers > 1 ? d->workers : 1;
    if (d->custom) workers = d->custom->workers;
    PMLP__BAD(d->replicas < 0, "replicas", "is negative");
    PMLP__BAD(replicas > 1 && !g, "replicas", "want a group of ranks");
    PMLP__BAD(!(d->deadline >= 0.0 && d->deadline <= 1e9), "deadline", "is not in 0 .. 1e9");
    PMLP__BAD(replicas > 1 && !d->custom && pmlp__is_asynchronous(d->schedule), "replicas",
              "want a synchronous schedule");
    if (!g || p->first != PMLP_OK) return;
    PMLP__BAD(!pmlp__is_edges(g->edges) || !pmlp__is_whole_edges(g->edges), "group",
              "has edges for another version of pipemlp.h, or with an entry that is NULL");
    PMLP__BAD(g->edges->shared, "group", "has edges that share memory, which ranks do not");
    PMLP__BAD(g->host && d->backend && d->backend->edges, "group",
              "is for the host's memory, which this back end does not work in");
    PMLP__BAD(g->ranks % replicas != 0, "replicas", "do not divide the group's ranks");
    PMLP__BAD(g->ranks / replicas > workers, "group", "has more ranks than there are workers");
    PMLP__BAD(replicas > 1 && !g->sum && (d->allreduce || !exact), "allreduce",
              "wants a group that can sum; so does a back end that is not exact");
}

static void pmlp__validate_tables(const pmlp_trainer_desc *d, pmlp__problems *p) {
    const pmlp_edges *edges = d->edges;
    PMLP__BAD(d->backend && (d->backend->abi != PMLP_BACKEND_ABI ||
                             d->backend->size != (uint32_t)sizeof(pmlp_backend)),
              "backend", "was built for another version of pipemlp.h");
    if (!edges && p->first == PMLP_OK && d->backend) edges = d->backend->edges;
    PMLP__BAD(edges && !pmlp__is_edges(edges), "edges",
              "was built for another version of pipemlp.h");
    PMLP__BAD(p->first == PMLP_OK && d->backend && !pmlp__is_whole_backend(d->backend), "backend",
              "has an entry that is NULL");
    PMLP__BAD(p->first == PMLP_OK && edges && !pmlp__is_whole_edges(edges), "edges",
              "has an entry that is NULL");
    PMLP__BAD(p->first == PMLP_OK && edges && edges->transport != PMLP_TRANSPORT_DEFAULT &&
                  edges->transport != PMLP_TRANSPORT_SLOTS &&
                  edges->transport != PMLP_TRANSPORT_RENDEZVOUS,
              "edges", "has a transport that the trainer cannot reckon with");
}
#undef PMLP__BAD

static void pmlp__validate_cuts(const pmlp_model *model, const pmlp_trainer_desc *d,
                                pmlp__problems *p) {
    int i, stages;
    stages = d->workers ? d->workers : 1;
    if (p->first == PMLP_OK && !d->custom)
        stages *= d->virtual_stages ? d->virtual_stages : pmlp__default_virtual(d->schedule);
    if (d->custom) stages = d->custom->stages;
    pmlp__problem(p, !d->cuts && stages > 0 &&
                          (size_t)stages >= pmlp__places(model, d->whole_layers, NULL, NULL),
                  PMLP_ERROR_SHAPE, "workers", "more stages than the layers can be cut into");
    for (i = 0; d->cuts && i < stages - 1; i++)
        if (!pmlp__cut_is_valid(model, d->whole_layers, i ? &d->cuts[i - 1] : NULL, &d->cuts[i])) {
            pmlp__problem(p, true, PMLP_ERROR_ARGUMENT, "cuts",
                          "are not ascending places inside the model");
            break;
        }
}

static pmlp_result pmlp__validate_desc(const pmlp_model *model, const pmlp_trainer_desc *d,
                                       pmlp_error *error) {
    char text[sizeof error->text] = "";
    pmlp__problems p;
    p.first = PMLP_OK;
    p.text.buffer = text;
    p.text.size = sizeof text;
    p.text.length = 0;
    pmlp__validate_numbers(d, &p);
    pmlp__validate_schedule(d, &p);
    pmlp__validate_tables(d, &p);
    pmlp__validate_group(d, &p);
    pmlp__validate_cuts(model, d, &p);
    pmlp__text_end(&p.text, NULL);
    return p.first == PMLP_OK ? PMLP_OK : pmlp__fail(error, p.first, "%s", text);
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

/* One end of a queue, or both, if both are this rank's. */
typedef struct pmlp__edge {
    const pmlp_edges *table;
    void *handle;
    int other; /* the rank at the other end; -1: this one */
} pmlp__edge;

typedef struct pmlp__stage {
    int index, worker, first_layer, layers;
    size_t first_column, columns; /* of its first layer: all, unless that is layer 0, cut inside */
    int below;                    /* what the stage below hands over: x[below], for dz[below] */
    bool is_last;
    bool is_here;                 /* its worker is this rank's; if not, there is nothing below */
    bool shares_below;            /* nobody copies over x[below], which the stage below has, too */
    void **handles;    /* [layers]: the back end's layers */
    float **x, **dz;   /* [layers + 1] */
    bool *owns_x, *owns_dz;
    size_t *row;       /* [layers + 1]: floats from row to row of x[l] and dz[l] */
    pmlp__edge *send_f, *recv_f, *send_b, *recv_b; /* NULL inside one worker */
    pmlp__edge *from_before, *to_next; /* between replicas: gradients that are being summed, */
    pmlp__edge *from_next, *to_before; /* and on their way back; NULL at the ends of the chain */
    int w_begin, w_end; /* micro-batches whose W is put off; none if begin = end */
    pmlp_span *adding;  /* where its part in the chain of replicas is noted */
    bool *own;          /* [m]: its columns of layer 0 are there, maybe ahead of the rest of F */
    int ahead;          /* micro-batches from 0 of which that is so */

    /* Version n of the weights, what the n-th update left, is in place n % versions. */
    int versions;
    uint64_t updates, updates_before; /* so far; before this pass */
    uint64_t first_version; /* what was loaded; older ones are of another training */
    uint64_t *version_at;   /* [versions]: which is in a place */
    uint64_t *version_of;   /* [trainer's ring of micro-batches]: which its forward read */
    uint64_t gradients, stale, most_stale, torn; /* micro-batches and what was measured of them */
} pmlp__stage;

/* What one worker did in the steps that are kept. */
typedef struct pmlp__trace {
    pmlp_span *spans; /* [kept steps][capacity], times by the machine's clock; NULL: no tracing */
    int *counts;      /* [kept steps] */
    int microbatches;  /* of a pass that are noted */
    int capacity, at;  /* spans per step; the present step's place */
} pmlp__trace;

/* Something that is done on a worker's thread; what `index` means is the task's business. */
typedef pmlp_result (*pmlp__task)(pmlp_trainer *t, int index, pmlp_error *error);

typedef struct pmlp__worker {
    pmlp_trainer *trainer;
    int index;
    pmlp__task task;        /* of its thread: the last one given, and what came of it */
    int task_index;
    pmlp_result task_result;
    pmlp_error task_error;
    pmlp__atomic tasks;     /* how many it was given */
    void *context;          /* the back end's */
    const pmlp_action *list;
    int count, next;
    int w_pending; /* stages of this worker whose W is put off */
    int linked;    /* parts of the chain of replicas that it has done in this pass */
    bool has_summed, has_arrived; /* at the gate */
    int asks;      /* the rank at the other end of the edge that was BUSY last; -1: none */
    double asking_since;
    double begun, finished, blocked_since, blocked; /* seconds, of the present pass */
    double busy;            /* seconds, of the present call */
    pmlp__trace trace;

    pmlp__mutex mutex;      /* for sleeping only */
    pmlp__cond cond;
    bool has_mutex, has_cond, has_thread;
    pmlp__atomic sleeping;
    int pauses;             /* of a wait: looks before it gives its core away */
    pmlp__thread thread;
    pmlp__thread_start start;
    char gap[128];
} pmlp__worker;

/* What each rank says before all do something: they go on if all say the same. */
typedef struct pmlp__sheet {
    int32_t result, flag;
    char facts[1528]; /* "name: value\n" for each; the name of the call comes first */
    char why[512];    /* if the result is not PMLP_OK */
} pmlp__sheet;

struct pmlp_trainer {
    pmlp_trainer_desc desc; /* resolved */
    pmlp_model *model;
    const pmlp_backend *backend;
    const pmlp_edges *edges;
    pmlp_schedule *schedule, *lowered, *forward;
    pmlp_schedule *many;    /* asynchronous: lowered, of many_batches batches without a flush */
    int many_batches, pass_batches; /* most batches that a pass may have: 1 if synchronous */
    int ring;               /* batches whose activations are kept at once: 1 if synchronous */
    pmlp_cut *cuts;         /* [stages - 1], and one more that is unused */
    double *layer_costs;    /* [layers]: by which they were chosen */
    pmlp__stage *stages;
    pmlp__worker *workers;
    pmlp__edge *connected;  /* all edges, for reset */
    int connected_count;

    pmlp_group *group;      /* NULL: all workers and stages are here */
    int replica;            /* of desc.replicas */
    int first_worker, end_worker; /* that are here */
    size_t share;           /* most rows of a batch that one replica has */
    bool is_known;          /* the last failure is one that all ranks were told */
    bool is_watched;        /* some rank has a progress callback */
    pmlp__sheet *sheets;    /* [1 + ranks]: what this one says, what all say */
    double *mail;           /* [1 + ranks][mail_size]: alike */
    size_t mail_size;
    bool polled;            /* the edges do not wake anybody */

    /* the present pass, written before the workers start */
    const pmlp_data *data;
    const uint32_t *index;  /* of the batch's rows in data, or NULL: first, first + 1, ... */
    size_t first, rows;     /* of this replica: all, or its share */
    size_t whole, offset;   /* rows of all replicas, and where in row_loss this one's are */
    size_t hits;            /* of all */
    bool training;
    double *row_loss;       /* [pass_batches * batch] */
    unsigned char *row_hit; /* [pass_batches * batch] */
    double *squares;        /* [all neurons]: the gradient's squares, layer by layer */
    size_t *squares_at;     /* [layers] */

    pmlp__atomic done;      /* of the tasks given to the workers' threads at once */
    pmlp__atomic failed, stop, in_use;
    pmlp__atomic gathered;  /* workers that have all gradients of the step, or are about to */
    pmlp__atomic gate;      /* 1 when all have, of all ranks: updates may begin */
    pmlp__atomic updating;  /* 1 when one has begun: a failure now leaves the weights mixed */
    pmlp__atomic no_query;  /* 0 while the progress callback runs: it may ask, one call at a time */

    uint32_t *order;        /* of the rows, in an epoch */
    size_t order_size;
    uint64_t step, epoch;
    uint64_t updates_loaded; /* what was loaded had been updated so often */
    uint64_t epoch_total, epoch_rows, epoch_hits; /* of an epoch under way: the rows of its data, */
    double epoch_loss;       /* those done, and the sums over them; 0 if there is none */
    bool has_gradient;       /* of a step of this trainer */
    bool bad;               /* the step's loss or gradient is not finite: no update */
    double gradient_norm;
    double *idle, *busy;    /* [workers]: what stats tell; seconds of the call so far */
    double seconds;         /* of the call so far, on rank 0's clock, if there are ranks */
    int traced;             /* steps traced so far, while they are fewer than desc.trace */
    double *costs;          /* [7][stages] and latency: what pmlp_trainer_costs() hands out */
    pmlp_error error;       /* of the last call that failed */
    pmlp_error failure;     /* of the pipeline; written by the worker that sets `failed` first */
};

/* Where a micro-batch begins among the rows of the pass: each batch is cut into m parts that differ
   by one row at most, for any number of rows; with fewer rows than micro-batches some parts are
   empty, and their actions do nothing. */
static size_t pmlp__row_of(const pmlp_trainer *t, int microbatch) {
    const int m = t->schedule->microbatches;
    const size_t first = (size_t)(microbatch / m) * t->share;
    const size_t left = t->rows > first ? t->rows - first : 0;
    const size_t rows = left < t->share ? left : t->share;
    if (left == 0) return t->rows;
    return first + (size_t)((uint64_t)rows * (uint64_t)(microbatch % m) / (uint64_t)m);
}

/* Where that is in the buffers, which hold `ring` batches and are used in turn. */
static size_t pmlp__place_of(const pmlp_trainer *t, size_t row) {
    return row % ((size_t)t->ring * t->share);
}

static size_t pmlp__rows_between(const pmlp_trainer *t, int begin, int end) {
    return pmlp__row_of(t, end) - pmlp__row_of(t, begin);
}

/* The first of the micro-batches whose gradients one update takes, and how many rows these have. */
static int pmlp__group_of(const pmlp_trainer *t, int microbatch) {
    return t->schedule->per_update ? microbatch - microbatch % t->schedule->per_update : 0;
}

static bool pmlp__ends_group(const pmlp_trainer *t, int microbatch) {
    const int n = t->schedule->per_update ? t->schedule->per_update : t->schedule->microbatches;
    return microbatch % n == n - 1;
}

static size_t pmlp__group_rows(const pmlp_trainer *t, int microbatch) {
    const int first = pmlp__group_of(t, microbatch);
    return t->schedule->per_update ? pmlp__rows_between(t, first, first + t->schedule->per_update)
                                   : t->whole;
}

/* The stages that have layer 0, or some of it, read the input rows; nobody needs the gradient of
   these. */
static bool pmlp__reads_input(const pmlp__stage *stage) { return stage->first_layer == 0; }

static void *pmlp__context_of(const pmlp_trainer *t, const pmlp__stage *stage) {
    return t->workers[stage->worker].context;
}

/* --- operations: each returns the back end's result ------------------------------------------- */

static pmlp_result pmlp__stage_loss(pmlp_trainer *t, pmlp__stage *stage, int microbatch) {
    const size_t from = pmlp__row_of(t, microbatch), place = pmlp__place_of(t, from);
    const int n = stage->layers;
    pmlp_loss_args args;
    args.loss = t->model->desc.loss;
    args.rows = pmlp__rows_between(t, microbatch, microbatch + 1);
    args.y = stage->x[n] + place * stage->row[n];
    args.data = t->data;
    args.index = t->index ? t->index + from : NULL;
    args.first = t->first + from;
    args.scale = 1.0f / (float)pmlp__group_rows(t, microbatch);
    args.dz = t->training ? stage->dz[n] + place * stage->row[n] : NULL;
    args.row_loss = t->row_loss + t->offset + from;
    args.row_hit = t->row_hit + t->offset + from;
    return t->backend->loss(pmlp__context_of(t, stage), stage->handles[n - 1], &args);
}

/* The place of the weights that a forward reads: of the version that the schedule wants, or,
   without stashing, of what is there in its stead. */
static int pmlp__forward_version(pmlp_trainer *t, pmlp__stage *stage, int microbatch) {
    uint64_t wanted = t->training ? pmlp__version_read(t->schedule, stage->updates_before,
                                                       stage->updates, microbatch)
                                  : stage->updates;
    const int ring = t->ring * t->schedule->microbatches;
    int place;
    if (wanted < stage->first_version) wanted = stage->first_version;
    place = (int)(wanted % (uint64_t)stage->versions);
    if (t->training) stage->version_of[microbatch % ring] = stage->version_at[place];
    return place;
}

/* The same for its backward: the version that the forward read, if it is still there. */
static int pmlp__backward_version(pmlp_trainer *t, pmlp__stage *stage, int microbatch) {
    const int ring = t->ring * t->schedule->microbatches;
    const uint64_t read = stage->version_of[microbatch % ring];
    const int place = (int)(read % (uint64_t)stage->versions);
    if (pmlp__rows_between(t, microbatch, microbatch + 1) > 0)
        stage->torn += stage->version_at[place] != read;
    return place;
}

/* Layers begin .. end-1 of a stage for micro-batches first .. last-1; layer 0 with the input. */
static pmlp_result pmlp__forward_layers(pmlp_trainer *t, pmlp__stage *stage, int begin, int end,
                                        int version, int first, int last) {
    const size_t from = pmlp__row_of(t, first), place = pmlp__place_of(t, from);
    const size_t rows = pmlp__rows_between(t, first, last);
    void *context = pmlp__context_of(t, stage);
    pmlp_result result = PMLP_OK;
    int l;
    if (rows == 0) return PMLP_OK;
    if (pmlp__reads_input(stage) && begin == 0)
        result = t->backend->input(context, rows, pmlp__n_in(t->model, 0), t->data,
                                   t->index ? t->index + from : NULL, t->first + from,
                                   stage->x[0] + place * stage->row[0]);
    for (l = begin; result == PMLP_OK && l < end; l++)
        result = t->backend->forward(context, stage->handles[l], version, rows,
                                     stage->x[l] + place * stage->row[l],
                                     stage->x[l + 1] + place * stage->row[l + 1]);
    return result;
}

/* What a stage that completes layer 0 can do before it hears from the stage below: its own columns.
   Not if what is received is copied over them, and not of an asynchronous schedule, whose
   micro-batches may want different weights. */
static bool pmlp__goes_ahead(const pmlp_trainer *t, const pmlp__stage *stage) {
    return stage->below > 0 && stage->shares_below &&
           !(t->training && t->schedule->per_update);
}

static bool pmlp__can_go_ahead(const pmlp_trainer *t, pmlp__stage *stage) {
    const int m = t->schedule->microbatches;
    while (stage->ahead < m && stage->own[stage->ahead]) stage->ahead++;
    return stage->ahead < m && pmlp__goes_ahead(t, stage);
}

static pmlp_result pmlp__stage_ahead(pmlp_trainer *t, pmlp__stage *stage) {
    const int microbatch = stage->ahead;
    stage->own[microbatch] = true;
    return pmlp__forward_layers(t, stage, 0, stage->below,
                                pmlp__forward_version(t, stage, microbatch), microbatch,
                                microbatch + 1);
}

/* F: the layers, and the loss for the last stage */
static pmlp_result pmlp__stage_forward(pmlp_trainer *t, pmlp__stage *stage, int microbatch) {
    bool *own = &stage->own[microbatch % t->schedule->microbatches];
    const int begin = *own ? stage->below : 0;
    const int version = pmlp__forward_version(t, stage, microbatch);
    pmlp_result result = pmlp__forward_layers(t, stage, begin, stage->layers, version, microbatch,
                                              microbatch + 1);
    *own = pmlp__goes_ahead(t, stage);
    if (result == PMLP_OK && stage->is_last &&
        pmlp__rows_between(t, microbatch, microbatch + 1) > 0)
        result = pmlp__stage_loss(t, stage, microbatch);
    return result;
}

/* I: from dz of the stage's last layer down to dz of the layer below the stage */
static pmlp_result pmlp__stage_backward_input(pmlp_trainer *t, pmlp__stage *stage, int microbatch) {
    const size_t place = pmlp__place_of(t, pmlp__row_of(t, microbatch));
    const size_t rows = pmlp__rows_between(t, microbatch, microbatch + 1);
    const int version = pmlp__backward_version(t, stage, microbatch);
    pmlp_result result = PMLP_OK;
    int l;
    if (rows == 0) return PMLP_OK;
    for (l = stage->layers - 1; result == PMLP_OK && l >= (pmlp__reads_input(stage) ? 1 : 0); l--)
        result = t->backend->backward_input(pmlp__context_of(t, stage), stage->handles[l], version,
                                            rows, stage->dz[l + 1] + place * stage->row[l + 1],
                                            stage->x[l] + place * stage->row[l],
                                            stage->dz[l] + place * stage->row[l]);
    return result;
}

/* Whether gradients begin with those of the replica before. Their W waits for these. */
static bool pmlp__continues(const pmlp_trainer *t) {
    return t->replica > 0 && !t->desc.allreduce;
}

/* W of micro-batches begin .. end-1 of one group: one product with a longer k, and the same bits as
   several */
static pmlp_result pmlp__layer_weight(pmlp_trainer *t, pmlp__stage *stage, int l, int begin,
                                      int end) {
    const size_t place = pmlp__place_of(t, pmlp__row_of(t, begin));
    const size_t rows = pmlp__rows_between(t, begin, end);
    const bool anew = begin == pmlp__group_of(t, begin) && !pmlp__continues(t);
    if (rows == 0 && !anew) return PMLP_OK;
    return t->backend->backward_weight(pmlp__context_of(t, stage), stage->handles[l], rows,
                                       stage->x[l] + place * stage->row[l],
                                       stage->dz[l + 1] + place * stage->row[l + 1], !anew);
}

static pmlp_result pmlp__stage_backward_weight(pmlp_trainer *t, pmlp__stage *stage, int begin,
                                               int end) {
    pmlp_result result = PMLP_OK;
    int l;
    for (l = stage->layers - 1; result == PMLP_OK && l >= 0; l--)
        result = pmlp__layer_weight(t, stage, l, begin, end);
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
    return pmlp_schedule_is_synchronous(t->schedule) &&
           (t->desc.gradient_norm || t->desc.clip_norm > 0.0f);
}

/* Whether whole gradients are to be had, before U and behind it. */
static bool pmlp__keeps_gradients(const pmlp_trainer *t) {
    return t->desc.keep_gradients || pmlp__wants_norm(t) || t->desc.replicas > 1;
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

/* How old the weights were that the gradients of this update came from. */
static void pmlp__measure_staleness(pmlp_trainer *t, pmlp__stage *stage, int first, int count) {
    const int ring = t->ring * t->schedule->microbatches;
    int i;
    for (i = first; i < first + count; i++) {
        const uint64_t stale = stage->updates - stage->version_of[i % ring];
        if (pmlp__rows_between(t, i, i + 1) == 0) continue;
        stage->gradients++;
        stage->stale += stale;
        if (stale > stage->most_stale) stage->most_stale = stale;
    }
}

/* U, with the W that is still put off: of a synchronous schedule after the gate; of an asynchronous
   one for the group that ends with this micro-batch, unless it has no rows */
static pmlp_result pmlp__stage_update(pmlp_trainer *t, pmlp__stage *stage, int microbatch) {
    const pmlp_trainer_desc *d = &t->desc;
    const uint64_t versions = (uint64_t)stage->versions;
    const int group = t->schedule->per_update ? t->schedule->per_update : t->schedule->microbatches;
    const size_t place = pmlp__place_of(t, pmlp__row_of(t, stage->w_begin));
    pmlp_update_args args;
    pmlp_result result = PMLP_OK;
    int l;
    if (pmlp__group_rows(t, microbatch < 0 ? 0 : microbatch) == 0) return PMLP_OK;
    pmlp__measure_staleness(t, stage, pmlp__group_of(t, microbatch < 0 ? 0 : microbatch), group);
    args.optimizer = d->optimizer;
    args.learning_rate = d->learning_rate;
    args.momentum = d->momentum;
    args.beta1 = d->beta1;
    args.beta2 = d->beta2;
    args.epsilon = d->epsilon;
    args.weight_decay = d->weight_decay;
    args.from = (int)(stage->updates % versions);
    args.step = t->updates_loaded + ++stage->updates - stage->first_version;
    args.to = (int)(stage->updates % versions);
    args.gradient_scale = 1.0f;
    if (d->clip_norm > 0.0f) {
        const double norm = t->gradient_norm;
        if (norm > (double)d->clip_norm) args.gradient_scale = (float)((double)d->clip_norm / norm);
    }
    args.rows = pmlp__rows_between(t, stage->w_begin, stage->w_end);
    args.anew =
        stage->w_begin < stage->w_end && stage->w_begin == pmlp__group_of(t, stage->w_begin);
    for (l = stage->layers - 1; result == PMLP_OK && l >= 0; l--) {
        args.x = stage->x[l] + place * stage->row[l];
        args.dz = stage->dz[l + 1] + place * stage->row[l + 1];
        result = t->backend->update(pmlp__context_of(t, stage), stage->handles[l], &args);
    }
    stage->version_at[args.to] = stage->updates;
    return result;
}

/* --- what wakes a worker, and what stops all -------------------------------------------------- */

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
    for (i = t->first_worker; t->workers && i < t->end_worker; i++) pmlp__wake(&t->workers[i]);
}

/* The first failure wins: it is kept, and the other ranks are told. All workers stop. */
static void pmlp__trainer_fail(pmlp_trainer *t, const pmlp_error *why) {
    if (pmlp__exchange(&t->failed, 1) == 0) {
        t->failure = *why;
        if (t->group) t->group->abort(t->group->context, t->failure.text);
    }
    pmlp__wake_all(t);
}

/*============================================================================================*/
/* >>ranks: what they tell each other                                                         */
/*                                                                                            */
/* Before each call all ranks exchange a sheet of what they are about to do; before each      */
/* synchronous update they wait for each other; behind each pass they exchange what came of   */
/* it. Everything else goes over edges. Without a group nothing here does anything.           */
/*============================================================================================*/

/* Why the group's last call failed, or "". */
static const char *pmlp__group_reason(const pmlp_group *group) {
    const char *why = group && group->explain ? group->explain(group->context) : NULL;
    return why ? why : "";
}

/* The first worker of each rank of a pipeline, i = 0 .. n. */
static int pmlp__block(const pmlp_trainer *t, int i) {
    const int ranks = t->group ? t->group->ranks / t->desc.replicas : 1;
    return (int)((int64_t)i * t->schedule->workers / ranks);
}

/* The rank that has a worker of a replica. */
static int pmlp__rank_of(const pmlp_trainer *t, int replica, int worker) {
    const int ranks = t->group ? t->group->ranks / t->desc.replicas : 1;
    int i = 0;
    while (worker >= pmlp__block(t, i + 1)) i++;
    return replica * ranks + i;
}

/* Whether other ranks have stages that this one lacks. */
static bool pmlp__is_spread(const pmlp_trainer *t) {
    return t->group && t->group->ranks > t->desc.replicas;
}

/* Two sheets' first lines that differ. */
static pmlp_result pmlp__disagree(const pmlp__sheet *a, const pmlp__sheet *b, int rank,
                                  pmlp_error *error) {
    const char *x = a->facts, *y = b->facts;
    const size_t most = 150;
    size_t at = 0, line = 0, x_size, y_size, name;
    while (x[at] == y[at]) line = x[at++] == '\n' ? at : line;
    x += line, y += line;
    x_size = strcspn(x, "\n"), y_size = strcspn(y, "\n");
    name = strcspn(x, ":") + 1;
    if (name > x_size || strncmp(x, y, name) != 0) name = 0; /* one of them lacks the line */
    else y += name + 1, y_size -= name + 1;
    return pmlp__fail(error, PMLP_ERROR_RANK,
                      "the ranks do not agree: %.*s on rank 0, %.*s on rank %d",
                      (int)(x_size < most ? x_size : most), x,
                      (int)(y_size < most ? y_size : most), y, rank);
}

/* A collective that failed leaves the ranks apart: nothing more can be done with them. */
static pmlp_result pmlp__part(pmlp_trainer *t, const char *doing, pmlp_result result,
                              pmlp_error *error) {
    const char *why = pmlp__group_reason(t->group);
    pmlp_error kept;
    pmlp__fail(&kept, result, "%s with the other ranks: %.400s", doing,
               *why ? why : pmlp_result_text(result));
    pmlp__trainer_fail(t, &kept);
    if (error) *error = t->failure;
    return result;
}

/* All ranks hear what this one is about to do (t->sheets[0].facts) and how it fares. Failures of
   any, and facts that differ, fail here. *flag, which may be NULL: in, whether this rank raises it;
   out, 1 + the first that does, or 0. */
static pmlp_result pmlp__agree(pmlp_trainer *t, pmlp_result own, int *flag, pmlp_error *error) {
    pmlp__sheet *mine = t->sheets, *all = mine + 1;
    pmlp_result result;
    int i;
    if (!t->group) return own;
    mine->result = (int32_t)own;
    mine->flag = flag ? *flag : 0;
    snprintf(mine->why, sizeof mine->why, "%s", own == PMLP_OK ? "" : error->text);
    result = t->group->gather(t->group->context, mine, sizeof *mine, all, t->desc.deadline);
    if (result != PMLP_OK) return pmlp__part(t, "agreeing", result, error);
    t->is_known = true;
    if (own != PMLP_OK) return own;
    for (i = 0; i < t->group->ranks; i++)
        if (all[i].result != 0)
            return pmlp__fail(error, PMLP_ERROR_RANK, "rank %d failed: %.400s", i, all[i].why);
    for (i = 1; i < t->group->ranks; i++)
        if (strcmp(all[0].facts, all[i].facts) != 0)
            return pmlp__disagree(&all[0], &all[i], i, error);
    t->is_known = false;
    if (flag) *flag = 0;
    for (i = t->group->ranks - 1; flag && i >= 0; i--)
        if (all[i].flag) *flag = i + 1;
    return PMLP_OK;
}

static void pmlp__fact(pmlp__text *facts, const char *name, const char *format, ...)
    PMLP__FORMAT(3, 4);
static void pmlp__fact(pmlp__text *facts, const char *name, const char *format, ...) {
    char value[160];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(value, sizeof value, format, arguments);
    va_end(arguments);
    pmlp__put(facts, "%s: ", name);
    pmlp__put(facts, "%s\n", value);
}

static pmlp__text pmlp__facts(pmlp_trainer *t, const char *call) {
    pmlp__text facts;
    facts.buffer = t->sheets->facts;
    facts.size = sizeof t->sheets->facts;
    facts.length = 0;
    memset(facts.buffer, 0, facts.size);
    pmlp__fact(&facts, "call", "%s", call);
    return facts;
}

/* A fact that is too long to be shown. */
static void pmlp__fact_digest(pmlp__text *facts, const char *name, uint64_t hash) {
    pmlp__fact(facts, name, "digest %.0f", (double)(hash >> 12));
}

/* A number for the first, the middle and the last row: ranks that have other rows, or the same in
   another order, nearly always differ here. */
static uint64_t pmlp__data_digest(const pmlp_trainer *t, const pmlp_data *data) {
    const size_t n_in = pmlp__n_in(t->model, 0);
    const size_t n_out = pmlp__n_out(t->model, t->model->desc.layers - 1);
    uint64_t hash = 0;
    size_t i;
    for (i = 0; i < 3; i++) {
        const size_t row = (data->rows - 1) * i / 2;
        hash = pmlp_hash(hash, data->x + row * n_in, n_in * sizeof *data->x);
        if (data->labels) hash = pmlp_hash(hash, data->labels + row, sizeof *data->labels);
        if (data->targets)
            hash = pmlp_hash(hash, data->targets + row * n_out, n_out * sizeof *data->targets);
    }
    return hash;
}

/* Before a call that computes. */
static pmlp_result pmlp__agree_on_call(pmlp_trainer *t, const char *call, const pmlp_data *data,
                                       pmlp_result own) {
    if (t->group) {
        pmlp__text facts = pmlp__facts(t, call);
        pmlp__fact(&facts, "rows", "%.0f", data ? (double)data->rows : 0.0);
        pmlp__fact(&facts, "labels", "%s", data && data->labels ? "yes" : "no");
        pmlp__fact_digest(&facts, "some rows of the data",
                          data && own == PMLP_OK ? pmlp__data_digest(t, data) : 0);
        pmlp__fact(&facts, "step", "%.0f", (double)t->step);
        pmlp__fact(&facts, "learning_rate", "%.9g", (double)t->desc.learning_rate);
    }
    return pmlp__agree(t, own, NULL, &t->error);
}

/* Before weights or gradients are read from all. */
static pmlp_result pmlp__agree_on_reading(pmlp_trainer *t, const char *call, int layer, bool w,
                                          bool b, pmlp_result own) {
    if (!t->group) return own;
    if (own == PMLP_OK && pmlp__load(&t->failed) && pmlp__is_spread(t))
        return pmlp__fail(&t->error, PMLP_ERROR_STATE, "other ranks have what is asked for: %.300s",
                          t->failure.text);
    if (!pmlp__load(&t->failed)) {
        pmlp__text facts = pmlp__facts(t, call);
        pmlp__fact(&facts, "layer", "%d", layer);
        pmlp__fact(&facts, "of it", "%s%s", w ? "w" : "", b ? "b" : "");
        own = pmlp__agree(t, own, NULL, &t->error);
    }
    return own;
}

/* Row r of the mail is what rank r sent; what goes out lies before all of them. */
static double *pmlp__mail_of(const pmlp_trainer *t, int rank, size_t count) {
    return t->mail + t->mail_size + (size_t)rank * count;
}

static pmlp_result pmlp__exchange_mail(pmlp_trainer *t, size_t count) {
    return t->group->gather(t->group->context, t->mail, count * sizeof *t->mail,
                            t->mail + t->mail_size, t->desc.deadline);
}

/* At the gate: nobody goes on before all ranks are there, and knows then whether the numbers are
   good; and the squares of all stages. */
static pmlp_result pmlp__share_squares(pmlp_trainer *t) {
    size_t neurons = 0;
    pmlp_result result;
    int i, l;
    for (l = 0; pmlp__wants_norm(t) && l < t->model->desc.layers; l++)
        neurons += pmlp__n_out(t->model, l);
    t->mail[0] = t->bad ? 1.0 : 0.0;
    if (neurons) memcpy(t->mail + 1, t->squares, neurons * sizeof *t->mail);
    result = pmlp__exchange_mail(t, 1 + neurons);
    for (i = 0; result == PMLP_OK && i < t->group->ranks; i++)
        t->bad = t->bad || *pmlp__mail_of(t, i, 1 + neurons) != 0.0;
    for (i = 0; result == PMLP_OK && neurons && i < t->schedule->stages; i++) {
        const pmlp__stage *s = &t->stages[i];
        const double *from =
            pmlp__mail_of(t, pmlp__rank_of(t, t->replica, s->worker), 1 + neurons) + 1;
        for (l = 0; !s->is_here && l < s->layers; l++) {
            const size_t n = l == 0 ? s->columns : pmlp__n_out(t->model, s->first_layer + l);
            const size_t at = t->squares_at[s->first_layer + l] + (l == 0 ? s->first_column : 0);
            memcpy(t->squares + at, from + at, n * sizeof *from);
        }
    }
    return result;
}

/* Rows of a batch that replica j has begin here. */
static size_t pmlp__share_begin(const pmlp_trainer *t, size_t rows, int j) {
    return (size_t)((uint64_t)rows * (uint64_t)j / (uint64_t)t->desc.replicas);
}

/* What a rank tells behind a pass: seconds, hits; of each worker, how long it was busy; of each
   stage, how old its gradients were; the losses of its rows, if it has the last stage. */
enum { PMLP__MAIL_HEAD = 2, PMLP__MAIL_STAGE = 4 };

static size_t pmlp__results_size(const pmlp_trainer *t, size_t rows) {
    return PMLP__MAIL_HEAD + (size_t)t->schedule->workers +
           PMLP__MAIL_STAGE * (size_t)t->schedule->stages + rows;
}

static void pmlp__write_results(const pmlp_trainer *t, double seconds, double *to) {
    const int workers = t->schedule->workers, stages = t->schedule->stages;
    int i;
    *to++ = seconds;
    *to++ = (double)t->hits;
    for (i = 0; i < workers; i++) *to++ = t->workers[i].busy;
    for (i = 0; i < stages; i++) {
        const pmlp__stage *s = &t->stages[i];
        *to++ = (double)s->gradients;
        *to++ = (double)s->stale;
        *to++ = (double)s->most_stale;
        *to++ = (double)s->torn;
    }
    memcpy(to, t->row_loss + t->offset, t->rows * sizeof *to);
}

/* Of one rank: what it has, and nobody else of its replica. */
static void pmlp__read_results(pmlp_trainer *t, int rank, const double *from) {
    const int ranks = t->group->ranks / t->desc.replicas, replica = rank / ranks;
    const int begin = pmlp__block(t, rank % ranks), end = pmlp__block(t, rank % ranks + 1);
    const size_t first = pmlp__share_begin(t, t->whole, replica);
    const size_t rows = pmlp__share_begin(t, t->whole, replica + 1) - first;
    const double *stage = from + PMLP__MAIL_HEAD + t->schedule->workers;
    int i;
    if (rank == 0) t->seconds = from[0];
    t->hits += (size_t)from[1];
    for (i = begin; replica == 0 && i < end; i++)
        t->busy[i] = from[PMLP__MAIL_HEAD + i];
    for (i = 0; i < t->schedule->stages; i++, stage += PMLP__MAIL_STAGE) {
        pmlp__stage *s = &t->stages[i];
        if (replica != t->replica || s->worker < begin || s->worker >= end || s->is_here) continue;
        s->gradients = (uint64_t)stage[0];
        s->stale = (uint64_t)stage[1];
        s->most_stale = (uint64_t)stage[2];
        s->torn = (uint64_t)stage[3];
    }
    i = t->stages[t->schedule->stages - 1].worker;
    if (i >= begin && i < end) memcpy(t->row_loss + first, stage, rows * sizeof *stage);
}

/* Behind a pass: all ranks know what all others did. */
static pmlp_result pmlp__share_results(pmlp_trainer *t, double seconds) {
    const size_t most = (t->whole + (size_t)t->desc.replicas - 1) / (size_t)t->desc.replicas;
    const size_t count = pmlp__results_size(t, most);
    pmlp_result result;
    int i;
    pmlp__write_results(t, seconds, t->mail);
    result = pmlp__exchange_mail(t, count);
    if (result != PMLP_OK) return pmlp__part(t, "ending a step", result, &t->error);
    t->hits = 0;
    for (i = 0; i < t->group->ranks; i++)
        pmlp__read_results(t, i, pmlp__mail_of(t, i, count));
    return PMLP_OK;
}

/*============================================================================================*/
/* >>worker: one short loop                                                                   */
/*============================================================================================*/

/* The one whose list the calling thread runs. */
static pmlp__worker *pmlp__caller(pmlp_trainer *t) { return &t->workers[t->first_worker]; }

/* What went wrong, in the words of the group or the back end, if they have some. */
static const char *pmlp__reason(pmlp__worker *w, pmlp_result result) {
    const pmlp_backend *b = w->trainer->backend;
    const char *why = NULL;
    if (result == PMLP_ERROR_RANK) why = pmlp__group_reason(w->trainer->group);
    else if (b->explain) why = b->explain(w->context);
    return why && *why ? why : pmlp_result_text(result);
}

static void pmlp__worker_fail(pmlp__worker *w, pmlp_action a, pmlp_result result) {
    pmlp_error why;
    pmlp__fail(&why, result, "worker %d failed in %s: %s", w->index, pmlp__action_label(a).text,
               pmlp__reason(w, result));
    pmlp__error_place(&why, w->index, a);
    pmlp__trainer_fail(w->trainer, &why);
}

static void pmlp__blocked(pmlp__worker *w) {
    if (w->blocked_since == 0.0) w->blocked_since = pmlp__clock();
}

static void pmlp__unblocked(pmlp__worker *w) {
    if (w->blocked_since == 0.0) return;
    w->blocked += pmlp__clock() - w->blocked_since;
    w->blocked_since = 0.0;
}

/* The time at which all that a worker has begun is done: now, or, if its back end works on by
   itself, what that will have written by the end of the pass. */
static void pmlp__stamp(pmlp__worker *w, double *seconds) {
    const pmlp_backend *b = w->trainer->backend;
    if (!b->stamp || b->stamp(w->context, seconds) != PMLP_OK) *seconds = pmlp__clock();
}

/* Begins a span, if what runs is to be noted; NULL if not. */
static pmlp_span *pmlp__trace_begin(pmlp__worker *w, pmlp_action a) {
    pmlp__trace *trace = &w->trace;
    pmlp_span *span;
    if (!trace->spans || !w->trainer->training || a.microbatch >= trace->microbatches) return NULL;
    span = &trace->spans[(size_t)trace->at * (size_t)trace->capacity +
                         (size_t)trace->counts[trace->at]++];
    memset(span, 0, sizeof *span);
    span->op = a.op;
    span->stage = a.stage;
    span->microbatch = a.microbatch;
    span->count = 1;
    pmlp__stamp(w, &span->begin);
    return span;
}

static void pmlp__trace_end(pmlp__worker *w, pmlp_span *span) {
    if (span) pmlp__stamp(w, &span->end);
}

/* Does the W of one stage that was put off. */
static pmlp_result pmlp__flush_stage(pmlp__worker *w, pmlp__stage *stage) {
    const pmlp_action traced = {PMLP_OP_W, stage->index, stage->w_begin};
    pmlp_trainer *t = w->trainer;
    pmlp_result result;
    pmlp_span *span;
    if (stage->w_begin == stage->w_end) return PMLP_OK;
    pmlp__unblocked(w);
    span = pmlp__trace_begin(w, traced);
    if (span) span->count = stage->w_end - stage->w_begin;
    result = pmlp__stage_backward_weight(t, stage, stage->w_begin, stage->w_end);
    pmlp__trace_end(w, span);
    stage->w_begin = stage->w_end;
    w->w_pending--;
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
   in ascending order, one behind the other, is a rule of the checker. The last one is kept for U,
   which can do both in one go, unless the gradient itself is wanted. All is kept where gradients
   continue those of another replica. */
static pmlp_result pmlp__put_off_weights(pmlp__worker *w, pmlp__stage *stage, int microbatch) {
    pmlp_trainer *t = w->trainer;
    if (stage->w_begin == stage->w_end) {
        stage->w_begin = microbatch;
        w->w_pending++;
    }
    stage->w_end = microbatch + 1;
    if (pmlp__continues(t) || (!pmlp__keeps_gradients(t) && pmlp__ends_group(t, microbatch)))
        return PMLP_OK;
    return pmlp__rows_between(t, stage->w_begin, stage->w_end) < t->desc.w_rows
               ? PMLP_OK
               : pmlp__flush_stage(w, stage);
}

/* Over one edge, either way. Who has to wait for another rank does not do so forever. */
static pmlp_result pmlp__hand_over(pmlp__worker *w, const pmlp__edge *edge, bool sends,
                                   int microbatch, float *data, size_t bytes) {
    const pmlp_result result = sends ? edge->table->send(edge->handle, microbatch, data, bytes)
                                     : edge->table->receive(edge->handle, microbatch, data, bytes);
    w->asks = result == PMLP_BUSY ? edge->other : -1;
    return result;
}

static pmlp_result pmlp__send(pmlp__worker *w, pmlp__stage *stage, bool forward, int microbatch) {
    const pmlp_trainer *t = w->trainer;
    const int l = forward ? stage->layers : stage->below;
    const size_t place = pmlp__place_of(t, pmlp__row_of(t, microbatch));
    const size_t rows = pmlp__rows_between(t, microbatch, microbatch + 1);
    float *data = (forward ? stage->x : stage->dz)[l] + place * stage->row[l];
    return pmlp__hand_over(w, forward ? stage->send_f : stage->send_b, true, microbatch, data,
                           rows * stage->row[l] * sizeof *data);
}

static pmlp_result pmlp__receive(pmlp__worker *w, pmlp__stage *stage, bool forward,
                                 int microbatch) {
    const pmlp_trainer *t = w->trainer;
    const int l = forward ? stage->below : stage->layers;
    const size_t place = pmlp__place_of(t, pmlp__row_of(t, microbatch));
    const size_t rows = pmlp__rows_between(t, microbatch, microbatch + 1);
    float *data = (forward ? stage->x : stage->dz)[l] + place * stage->row[l];
    return pmlp__hand_over(w, forward ? stage->recv_f : stage->recv_b, false, microbatch, data,
                           rows * stage->row[l] * sizeof *data);
}

/* F or I */
static pmlp_result pmlp__compute(pmlp__worker *w, pmlp__stage *stage, pmlp_action a) {
    pmlp_trainer *t = w->trainer;
    pmlp_span *const span = pmlp__trace_begin(w, a);
    const pmlp_result result = a.op == PMLP_OP_F
                                   ? pmlp__stage_forward(t, stage, a.microbatch)
                                   : pmlp__stage_backward_input(t, stage, a.microbatch);
    pmlp__trace_end(w, span);
    return result;
}

/* U with the W that is still put off, which the time is noted for: the rest is hardly more. */
static pmlp_result pmlp__update_weights(pmlp__worker *w, pmlp__stage *stage, pmlp_action a) {
    const pmlp_action with = {PMLP_OP_W, stage->index, stage->w_begin};
    const int count = stage->w_end - stage->w_begin;
    pmlp_span *span = pmlp__trace_begin(w, count > 0 ? with : a);
    const pmlp_result result = pmlp__stage_update(w->trainer, stage, a.microbatch);
    if (count > 0) {
        if (span) span->count = count;
        pmlp__trace_end(w, span);
        span = pmlp__trace_begin(w, a);
        stage->w_begin = stage->w_end;
        w->w_pending--;
    }
    pmlp__trace_end(w, span);
    return result;
}

/* --- gradients of several replicas ------------------------------------------------------------ */

/* W of one layer. A trace has one span for all layers of the stage, with the waits between. */
static pmlp_result pmlp__add_to_chain(pmlp__worker *w, pmlp__stage *stage, int l) {
    const pmlp_action traced = {PMLP_OP_W, stage->index, stage->w_begin};
    pmlp_result result;
    if (!pmlp__continues(w->trainer)) return PMLP_OK; /* it has done its own */
    if (!stage->adding) stage->adding = pmlp__trace_begin(w, traced);
    if (stage->adding) stage->adding->count = stage->w_end - stage->w_begin;
    result = pmlp__layer_weight(w->trainer, stage, l, stage->w_begin, stage->w_end);
    pmlp__trace_end(w, stage->adding);
    return result;
}

/* A layer's share in the chain, in parts that may each have to wait: the sum so far comes from the
   replica before, this one's rows continue it, it goes on to the next; and what it has become in
   the last one comes back the same way. */
enum { PMLP__LINK_TAKE, PMLP__LINK_ADD, PMLP__LINK_GIVE, PMLP__LINK_BACK, PMLP__LINK_ON };

static pmlp_result pmlp__link(pmlp__worker *w, pmlp__stage *stage, int l, int part) {
    pmlp_trainer *t = w->trainer;
    pmlp__edge *const edge = part == PMLP__LINK_TAKE   ? stage->from_before
                             : part == PMLP__LINK_GIVE ? stage->to_next
                             : part == PMLP__LINK_BACK ? stage->from_next
                             : part == PMLP__LINK_ON   ? stage->to_before
                                                       : NULL;
    float *data;
    size_t floats;
    pmlp_result result;
    if (part == PMLP__LINK_ADD) return pmlp__add_to_chain(w, stage, l);
    if (!edge) return PMLP_OK;
    result = t->backend->gradient(w->context, stage->handles[l], &data, &floats);
    if (result != PMLP_OK) return result;
    return pmlp__hand_over(w, edge, part == PMLP__LINK_GIVE || part == PMLP__LINK_ON, l, data,
                           floats * sizeof *data);
}

/* The parts `first` .. `last` for all layers of the worker, from the top, as far as they go;
   *number counts those of the whole chain. */
static pmlp_result pmlp__links(pmlp__worker *w, int first, int last, int *number) {
    pmlp_trainer *t = w->trainer;
    int i, l, part;
    for (i = t->schedule->stages - 1; i >= 0; i--) {
        pmlp__stage *stage = &t->stages[i];
        for (l = stage->layers - 1; stage->worker == w->index && l >= 0; l--)
            for (part = first; part <= last; part++) {
                pmlp_result result;
                if ((*number)++ < w->linked) continue;
                result = pmlp__link(w, stage, l, part);
                if (result != PMLP_OK) return result;
                w->asking_since = 0.0;
                w->linked = *number;
            }
    }
    return PMLP_OK;
}

static pmlp_result pmlp__chain(pmlp__worker *w) {
    pmlp_trainer *t = w->trainer;
    int number = 0, i;
    pmlp_result result = pmlp__links(w, PMLP__LINK_TAKE, PMLP__LINK_GIVE, &number);
    if (result == PMLP_OK) result = pmlp__links(w, PMLP__LINK_BACK, PMLP__LINK_ON, &number);
    if (result != PMLP_OK) return result;
    for (i = 0; i < t->schedule->stages; i++)
        if (t->stages[i].worker == w->index) t->stages[i].w_begin = t->stages[i].w_end;
    w->w_pending = 0;
    return PMLP_OK;
}

/* Each replica's own gradients, added up. Without threads one worker after the other, so that the
   ranks meet in one order. */
static pmlp_result pmlp__sum(pmlp__worker *w) {
    pmlp_trainer *t = w->trainer;
    pmlp_result result = PMLP_OK;
    int i, l;
    if (t->desc.no_threads)
        for (i = t->first_worker; i < w->index; i++)
            if (!t->workers[i].has_summed && t->workers[i].count > 0) return PMLP_BUSY;
    pmlp__blocked(w);
    for (i = t->schedule->stages - 1; i >= 0; i--) {
        pmlp__stage *stage = &t->stages[i];
        for (l = stage->layers - 1; stage->worker == w->index && l >= 0; l--) {
            float *data;
            size_t floats;
            result = t->backend->gradient(w->context, stage->handles[l], &data, &floats);
            if (result == PMLP_OK)
                result = t->group->sum(t->group->context, w->index, t->desc.replicas, w->context,
                                       data, floats, t->desc.deadline);
            if (result != PMLP_OK) return result;
        }
    }
    pmlp__unblocked(w);
    return result;
}

/* --- the gate --------------------------------------------------------------------------------- */

/* The first of count numbers that is not finite; count: all are. */
static size_t pmlp__bad_one(const double *numbers, size_t count) {
    size_t i;
    for (i = 0; i < count && numbers[i] - numbers[i] == 0.0; i++) continue;
    return i;
}

/* Whether a loss of this rank's rows is not finite, as far as that is known before the update. */
static bool pmlp__has_bad_loss(const pmlp_trainer *t) {
    return t->stages[t->schedule->stages - 1].is_here &&
           (!t->backend->edges || pmlp__wants_norm(t)) &&
           pmlp__bad_one(t->row_loss + t->offset, t->rows) < t->rows;
}

/* The last worker of a rank waits for those of the other ranks. */
static pmlp_result pmlp__open_gate(pmlp__worker *w) {
    pmlp_trainer *t = w->trainer;
    t->bad = pmlp__has_bad_loss(t);
    if (t->group) {
        pmlp_result result;
        pmlp__blocked(w);
        result = pmlp__share_squares(t);
        if (result != PMLP_OK) return result;
        pmlp__unblocked(w);
    }
    if (pmlp__wants_norm(t)) {
        t->gradient_norm = pmlp__gradient_norm(t);
        t->bad = t->bad || pmlp__bad_one(&t->gradient_norm, 1) == 0;
    }
    pmlp__store(&t->gate, 1);
    pmlp__wake_all(t);
    return PMLP_OK;
}

/* The squares of all stages of the worker, whose gradients are complete. */
static pmlp_result pmlp__squares(pmlp__worker *w) {
    pmlp_trainer *t = w->trainer;
    int i;
    for (i = 0; i < t->schedule->stages; i++) {
        const pmlp_action last_w = {PMLP_OP_W, i, t->schedule->microbatches - 1};
        pmlp_result result;
        if (t->stages[i].worker != w->index) continue;
        result = pmlp__stage_squares(t, &t->stages[i]);
        if (result == PMLP_OK) continue;
        pmlp__worker_fail(w, last_w, result);
        return result;
    }
    return PMLP_OK;
}

/* A worker that comes to its first U of a synchronous step has all gradients, or, if they are not
   kept, all that its last W needs. The last worker of all opens the gate to the updates; until then
   nothing is lost if something fails. PMLP_BUSY: another replica is waited for. */
static pmlp_result pmlp__arrive(pmlp__worker *w) {
    pmlp_trainer *t = w->trainer;
    pmlp_result result = PMLP_OK;
    if (w->has_arrived) return PMLP_OK;
    if (pmlp__keeps_gradients(t) && !pmlp__continues(t)) result = pmlp__flush_weights(w);
    if (result == PMLP_OK && t->desc.replicas > 1)
        result = t->desc.allreduce ? pmlp__sum(w) : pmlp__chain(w);
    if (result != PMLP_OK) return result;
    w->has_summed = true;
    if (pmlp__wants_norm(t)) result = pmlp__squares(w);
    if (result != PMLP_OK) return result;
    w->has_arrived = true;
    if (pmlp__add(&t->gathered, 1) + 1 < t->end_worker - t->first_worker) return PMLP_OK;
    return pmlp__open_gate(w);
}

/* One action. PMLP_BUSY: not yet. */
static pmlp_result pmlp__execute(pmlp__worker *w, pmlp_action a) {
    pmlp_trainer *t = w->trainer;
    pmlp__stage *stage = &t->stages[a.stage];
    pmlp_result result;
    switch (a.op) {
    case PMLP_OP_F:
    case PMLP_OP_I: return pmlp__compute(w, stage, a);
    case PMLP_OP_W: return pmlp__put_off_weights(w, stage, a.microbatch);
    case PMLP_OP_SEND_F: return pmlp__send(w, stage, true, a.microbatch);
    case PMLP_OP_RECV_F: return pmlp__receive(w, stage, true, a.microbatch);
    case PMLP_OP_SEND_B: return pmlp__send(w, stage, false, a.microbatch);
    case PMLP_OP_RECV_B: return pmlp__receive(w, stage, false, a.microbatch);
    case PMLP_OP_U:
        if (!t->schedule->per_update && (result = pmlp__arrive(w)) != PMLP_OK) return result;
        if (!pmlp__load(&t->gate)) return PMLP_BUSY;
        if (pmlp__keeps_gradients(t) && (result = pmlp__flush_stage(w, stage)) != PMLP_OK)
            return result;
        pmlp__unblocked(w);
        if (t->bad) return PMLP_OK; /* no update; what was kept for it ends with the pass */
        pmlp__store(&t->updating, 1);
        return pmlp__update_weights(w, stage, a);
    default: return PMLP_ERROR_SCHEDULE;
    }
}

/* While there is nothing else: W that was put off, or what a stage can do before it receives.
   PMLP_BUSY: there is neither. */
static pmlp_result pmlp__fill_in(pmlp__worker *w, pmlp_action a) {
    pmlp__stage *stage = &w->trainer->stages[a.stage];
    pmlp_action traced = {PMLP_OP_F, 0, 0};
    pmlp_result result;
    pmlp_span *span;
    if (w->w_pending > 0 && !pmlp__continues(w->trainer)) return pmlp__flush_weights(w);
    if (a.op != PMLP_OP_RECV_F || !pmlp__can_go_ahead(w->trainer, stage)) return PMLP_BUSY;
    traced.stage = a.stage;
    traced.microbatch = stage->ahead;
    pmlp__unblocked(w);
    span = pmlp__trace_begin(w, traced);
    if (span) span->ahead = true;
    result = pmlp__stage_ahead(w->trainer, stage);
    pmlp__trace_end(w, span);
    if (result != PMLP_OK) pmlp__worker_fail(w, traced, result);
    return result;
}

/* Whether a worker has asked another rank in vain for too long, which it then says. */
static bool pmlp__gives_up(pmlp__worker *w, pmlp_action a) {
    pmlp_trainer *t = w->trainer;
    const double now = w->asks >= 0 ? pmlp__clock() : 0.0;
    pmlp_error why;
    if (w->asks < 0) return false;
    if (w->asking_since == 0.0) w->asking_since = now;
    if (now - w->asking_since < t->desc.deadline) return false;
    pmlp__fail(&why, PMLP_ERROR_RANK, "worker %d waited %g s for rank %d in %s", w->index,
               t->desc.deadline, w->asks, pmlp__action_label(a).text);
    pmlp__error_place(&why, w->index, a);
    pmlp__trainer_fail(t, &why);
    return true;
}

/* Runs the list until its end (PMLP_OK), until something is not there yet (PMLP_BUSY), or until
   something fails. */
static pmlp_result pmlp__advance(pmlp__worker *w) {
    while (w->next < w->count) {
        const pmlp_action a = w->list[w->next];
        pmlp_result result = PMLP_OK;
        if (pmlp__load(&w->trainer->failed)) return PMLP_ERROR_STATE;
        w->asks = -1;
        result = pmlp__execute(w, a);
        if (result == PMLP_OK) {
            pmlp__unblocked(w);
            w->asking_since = 0.0;
            w->next++;
            continue;
        }
        if (result == PMLP_BUSY) result = pmlp__fill_in(w, a);
        if (result == PMLP_BUSY) {
            pmlp__blocked(w);
            return pmlp__gives_up(w, a) ? PMLP_ERROR_RANK : result;
        }
        if (result != PMLP_OK) {
            pmlp__worker_fail(w, a, result);
            return result;
        }
    }
    return PMLP_OK;
}

enum { PMLP__FEW_PAUSES = 20, PMLP__MOST_PAUSES = 2000, PMLP__SPINS = 3000 };

/* Waits a little: first spins, then lets others have the core, among whom may be the one that it
   waits for, then sleeps until woken, or for a millisecond if `timed`. The caller
   asks again after each call, and once between falling asleep and sleeping: see pmlp__wake(). */
static void pmlp__backoff(pmlp__worker *w, int *spins, bool timed) {
    if (*spins < PMLP__SPINS) {
        if (++*spins <= w->pauses) pmlp__pause();
        else pmlp__yield();
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

/* A wait is over. If it took giving the core away, the one that was waited for may have no other:
   the next time it is given away sooner. */
static void pmlp__waited(pmlp__worker *w, int *spins) {
    if (*spins > w->pauses) w->pauses = w->pauses > 2 * PMLP__FEW_PAUSES ? w->pauses / 2
                                                                         : PMLP__FEW_PAUSES;
    else if (*spins > 0) w->pauses = pmlp__least(2 * w->pauses, PMLP__MOST_PAUSES);
    *spins = 0;
    pmlp__store(&w->sleeping, 0);
}

static void pmlp__worker_begin(pmlp__worker *w, const pmlp_schedule *lowered) {
    w->list = pmlp_schedule_actions(lowered, w->index, &w->count);
    w->next = 0;
    w->w_pending = w->linked = 0;
    w->has_summed = w->has_arrived = false;
    w->asks = -1;
    w->blocked = w->blocked_since = w->asking_since = 0.0;
    w->begun = w->finished = pmlp__clock();
}

/* End of a list, good or bad: waits for the device, which may still read the batch. */
static void pmlp__worker_finish(pmlp__worker *w, pmlp_result result) {
    pmlp_trainer *t = w->trainer;
    const pmlp_result synchronized = t->backend->synchronize(w->context);
    if (result == PMLP_OK && synchronized != PMLP_OK) {
        const pmlp_action last = w->list[w->count - 1];
        pmlp_error why;
        pmlp__fail(&why, synchronized, "worker %d failed in what it had begun up to %s: %s",
                   w->index, pmlp__label_of(last.op, last.stage, last.microbatch).text,
                   pmlp__reason(w, synchronized));
        pmlp__error_place(&why, w->index, last);
        pmlp__trainer_fail(t, &why);
    }
    w->finished = pmlp__clock();
    pmlp__unblocked(w);
}

/* One pass of one worker on a thread of its own: a task whose result is in the trainer. */
static pmlp_result pmlp__worker_pass(pmlp_trainer *t, int index, pmlp_error *error) {
    pmlp__worker *w = &t->workers[index];
    pmlp_result result;
    int spins = 0, at = -1;
    (void)error;
    w->begun = pmlp__clock();
    while ((result = pmlp__advance(w)) == PMLP_BUSY) {
        if (w->next != at) { /* some progress: spin anew */
            at = w->next;
            pmlp__waited(w, &spins);
        }
        pmlp__backoff(w, &spins, t->polled);
    }
    pmlp__waited(w, &spins);
    pmlp__worker_finish(w, result);
    return result;
}

/* The thread of all workers but the caller. */
static void pmlp__worker_main(void *argument) {
    pmlp__worker *w = (pmlp__worker *)argument;
    pmlp_trainer *t = w->trainer;
    int tasks = 0, spins = 0;
    while (!pmlp__load(&t->stop)) {
        if (pmlp__load(&w->tasks) == tasks) {
            pmlp__backoff(w, &spins, false);
            continue;
        }
        pmlp__waited(w, &spins);
        tasks++;
        w->task_result = w->task(t, w->task_index, &w->task_error);
        pmlp__add(&t->done, 1);
        pmlp__wake(pmlp__caller(t));
    }
}

static void pmlp__give_task(pmlp__worker *w, pmlp__task task, int index) {
    w->task = task;
    w->task_index = index;
    pmlp__error_clear(&w->task_error);
    pmlp__add(&w->tasks, 1);
    pmlp__wake(w);
}

/* Waits, on the calling thread, until the other workers have done so many tasks. */
static void pmlp__await_tasks(pmlp_trainer *t, int count) {
    pmlp__worker *const w = pmlp__caller(t);
    int spins = 0;
    while (pmlp__load(&t->done) < count) pmlp__backoff(w, &spins, false);
    pmlp__waited(w, &spins);
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
        d.virtual_stages = 0;
        d.schedule = PMLP_SCHEDULE_DEFAULT;
    } else {
        if (!d.schedule) d.schedule = PMLP_SCHEDULE_1F1B;
        if (!d.workers) d.workers = 1;
        if (!d.virtual_stages) d.virtual_stages = pmlp__default_virtual(d.schedule);
        if (!d.microbatches)
            d.microbatches = d.workers * d.virtual_stages == 1 ? 1 : 2 * d.workers;
    }
    if (!d.batch) d.batch = 128;
    if (!d.slots) d.slots = d.microbatches;
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
    if (!d.bad_numbers) d.bad_numbers = PMLP_BAD_NUMBERS_STOP;
    if (d.bad_numbers == PMLP_BAD_NUMBERS_SKIP && d.backend->edges) d.gradient_norm = true;
    if (!d.w_rows) d.w_rows = d.backend->exact ? 128 : 1;
    if (!d.backend->exact) d.whole_layers = true;
    if (!d.edges) d.edges = d.backend->edges ? d.backend->edges : pmlp_thread_edges();
    if (!d.replicas) d.replicas = 1;
    if (d.replicas > 1 && !d.backend->exact) d.allreduce = true;
    if (d.deadline == 0.0) d.deadline = 60.0;
    return d;
}

/* The schedule of so many batches without a flush. */
static pmlp_result pmlp__trainer_schedule(const pmlp_trainer_desc *d, int batches,
                                          pmlp_schedule **schedule, pmlp_error *error) {
    pmlp_schedule_desc s;
    if (d->custom) {
        *schedule = pmlp__schedule_copy(d->custom, &d->allocator);
        return *schedule ? PMLP_OK : pmlp__no_memory(error, "a schedule");
    }
    s.kind = d->schedule;
    s.workers = d->workers;
    s.virtual_stages = d->virtual_stages;
    s.microbatches = d->microbatches;
    s.batches = batches;
    s.costs = d->costs;
    s.memory = d->memory;
    s.allocator = d->allocator;
    return pmlp_schedule_create(&s, schedule, error);
}

/* Whether hand-offs have to meet, here or between ranks. */
static bool pmlp__meets(const pmlp_trainer *t) {
    return t->edges->transport == PMLP_TRANSPORT_RENDEZVOUS ||
           (t->group && t->group->edges->transport == PMLP_TRANSPORT_RENDEZVOUS);
}

/* Written out for the edges that there are, and proved to finish over them. */
static pmlp_result pmlp__trainer_lower(const pmlp_trainer *t, const pmlp_schedule *s,
                                       pmlp_schedule **lowered, pmlp_error *error) {
    const int slots = t->desc.slots;
    pmlp_result result = pmlp_schedule_check(s, slots, NULL, error);
    if (result != PMLP_OK) return result;
    if (!pmlp__meets(t)) return pmlp_schedule_lower(s, lowered, error);
    result = pmlp_schedule_lower_in_order(s, NULL, lowered, error);
    return result != PMLP_OK ? result
                             : pmlp_schedule_replay(*lowered, PMLP_TRANSPORT_RENDEZVOUS, 0, NULL,
                                                    error);
}

/* The forwards alone, which evaluation runs. */
static pmlp_result pmlp__trainer_forwards(pmlp_trainer *t, pmlp_error *error) {
    const bool meet = pmlp__meets(t);
    const int edges = 2 * t->schedule->stages;
    pmlp_result result;
    int *slots, edge;
    t->forward = pmlp__lowered(meet ? t->lowered : t->schedule, true);
    slots = (int *)pmlp__new(&t->desc.allocator, (size_t)edges, sizeof *slots);
    if (t->forward && slots) {
        for (edge = 0; edge < edges; edge++) slots[edge] = meet ? 0 : t->desc.slots;
        result = pmlp__replay_slots(t->forward, slots, false, error);
    } else {
        result = pmlp__no_memory(error, "a schedule");
    }
    pmlp__delete(&t->desc.allocator, slots);
    return result;
}

/* The lists for several batches without a flush. */
static pmlp_result pmlp__trainer_many(pmlp_trainer *t, int batches, pmlp_error *error) {
    pmlp_schedule *s = NULL;
    pmlp_result result;
    if (batches == t->many_batches) return PMLP_OK;
    pmlp_schedule_destroy(t->many);
    t->many = NULL;
    t->many_batches = 0;
    result = pmlp__trainer_schedule(&t->desc, batches, &s, error);
    if (result == PMLP_OK) result = pmlp__trainer_lower(t, s, &t->many, error);
    pmlp_schedule_destroy(s);
    if (result == PMLP_OK) t->many_batches = batches;
    return result;
}

/* Rows of an asynchronous pass, at the end of which the pipeline is empty and the caller is
   told. */
#define PMLP__PASS_ROWS 65536

/* An asynchronous trainer's passes of several batches. */
static pmlp_result pmlp__trainer_passes(pmlp_trainer *t, pmlp_error *error) {
    const int m = t->schedule->microbatches, most = PMLP__MAX_MICROBATCHES / m;
    /* A micro-batch's rows are written anew when nobody reads them any more: at most `workers` of
       them are in flight in any stage, and W is put off to the end of its batch at most, so that
       what is still read spans (workers - 1) / m + 2 batches. */
    t->ring = t->schedule->workers / m + 2;
    t->pass_batches = (int)(PMLP__PASS_ROWS / t->desc.batch);
    if (t->pass_batches < 1) t->pass_batches = 1;
    if (t->pass_batches > most) t->pass_batches = most;
    /* so many that all is seen that a longer pass would need of weight versions */
    return pmlp__trainer_many(t, t->ring, error);
}

/* The lists for training and for evaluation. */
static pmlp_result pmlp__trainer_schedules(pmlp_trainer *t, pmlp_error *error) {
    pmlp_result result = pmlp__trainer_schedule(&t->desc, 1, &t->schedule, error);
    if (result == PMLP_OK && t->desc.custom) t->desc.custom = t->schedule;
    if (result == PMLP_OK) result = pmlp__trainer_lower(t, t->schedule, &t->lowered, error);
    if (result == PMLP_OK) result = pmlp__trainer_forwards(t, error);
    t->ring = t->pass_batches = 1;
    return result != PMLP_OK || t->schedule->per_update == 0 ? result
                                                             : pmlp__trainer_passes(t, error);
}

static int pmlp__by_value(const void *a_, const void *b_) {
    const double a = *(const double *)a_, b = *(const double *)b_;
    return a < b ? -1 : a > b;
}

/* The lower median, so that it is one of the values; sorts them. */
static double pmlp__median(double *values, int count) {
    if (count == 0) return 0.0;
    qsort(values, (size_t)count, sizeof *values, pmlp__by_value);
    return values[(count - 1) / 2];
}

/* --- what layers cost ------------------------------------------------------------------------- */

/* A batch of nothing: x 0, labels or targets 0. *memory is to be freed. */
static pmlp_result pmlp__zero_data(const pmlp_model *model, pmlp_data *data, float **memory,
                                   pmlp_error *error) {
    const size_t n_in = pmlp__n_in(model, 0), n_out = pmlp__n_out(model, model->desc.layers - 1);
    const bool labels = model->desc.loss == PMLP_LOSS_XENT;
    const size_t each = n_in + (labels ? 1 : n_out);
    *memory = NULL;
    if (!pmlp__mul_overflows(data->rows, each))
        *memory = (float *)pmlp__new(&model->desc.allocator, data->rows * each, sizeof **memory);
    if (!*memory) return pmlp__no_memory(error, "a batch to measure with");
    data->x = *memory;
    if (labels) data->labels = (const int *)(const void *)(*memory + data->rows * n_in);
    else data->targets = *memory + data->rows * n_in;
    return PMLP_OK;
}

/* One layer on its own, with a batch of zeros, and with the loss if it is the last. */
typedef struct pmlp__layer_probe {
    const pmlp_backend *backend;
    void *context, *layer, *x, *y, *dz, *dx;
    size_t x_row, y_row;
    pmlp_data zeros;
    float *zeros_memory;
    pmlp_loss_args loss; /* no rows: none */
} pmlp__layer_probe;

#define PMLP__LAYER_PROBES 7 /* the first two to warm up */

static pmlp_result pmlp__layer_probe_begin(pmlp__layer_probe *p, const pmlp_model *model,
                                           const pmlp_trainer_desc *d, int layer) {
    const pmlp_layer_desc l = pmlp__layer_desc(model, layer, d->optimizer);
    const pmlp_backend *b = p->backend;
    pmlp_result result = b->layer_create(p->context, &l, &p->layer);
    p->x_row = b->row_floats(p->context, l.n_in, l.below);
    p->y_row = b->row_floats(p->context, l.n_out, l.activation);
    if (pmlp__mul_overflows(d->batch, (p->x_row + p->y_row) * sizeof(float)))
        return PMLP_ERROR_MEMORY;
    if (result == PMLP_OK)
        result = b->alloc(p->context, d->batch * p->x_row * sizeof(float), &p->x);
    if (result == PMLP_OK)
        result = b->alloc(p->context, d->batch * p->x_row * sizeof(float), &p->dx);
    if (result == PMLP_OK)
        result = b->alloc(p->context, d->batch * p->y_row * sizeof(float), &p->y);
    if (result == PMLP_OK)
        result = b->alloc(p->context, d->batch * p->y_row * sizeof(float), &p->dz);
    return result;
}

/* What the lowest and the highest layer need besides. */
static pmlp_result pmlp__layer_probe_data(pmlp__layer_probe *p, const pmlp_model *model,
                                          const pmlp_trainer_desc *d) {
    pmlp_error unused;
    if (p->zeros_memory) return PMLP_OK;
    p->zeros.rows = d->batch;
    return pmlp__zero_data(model, &p->zeros, &p->zeros_memory, &unused);
}

static pmlp_result pmlp__layer_probe_loss(pmlp__layer_probe *p, const pmlp_model *model,
                                          const pmlp_trainer_desc *d) {
    const pmlp_result result = pmlp__layer_probe_data(p, model, d);
    if (result != PMLP_OK) return result;
    p->loss.row_loss = (double *)pmlp__new(&d->allocator, d->batch, sizeof(double));
    p->loss.row_hit = (unsigned char *)pmlp__new(&d->allocator, d->batch, 1);
    if (!p->loss.row_loss || !p->loss.row_hit) return PMLP_ERROR_MEMORY;
    p->loss.loss = model->desc.loss;
    p->loss.rows = d->batch;
    p->loss.data = &p->zeros;
    p->loss.scale = 1.0f / (float)d->batch;
    p->loss.y = (const float *)p->y;
    p->loss.dz = (float *)p->dz;
    return PMLP_OK;
}

static void pmlp__layer_probe_end(pmlp__layer_probe *p, const pmlp_model *model,
                                  const pmlp_trainer_desc *d) {
    const pmlp_backend *b = p->backend;
    if (p->x) b->free(p->context, p->x);
    if (p->dx) b->free(p->context, p->dx);
    if (p->y) b->free(p->context, p->y);
    if (p->dz) b->free(p->context, p->dz);
    if (p->layer) b->layer_destroy(p->context, p->layer);
    p->x = p->dx = p->y = p->dz = p->layer = NULL;
    pmlp__delete(&model->desc.allocator, p->zeros_memory);
    pmlp__delete(&d->allocator, p->loss.row_loss);
    pmlp__delete(&d->allocator, p->loss.row_hit);
    p->zeros_memory = NULL;
}

/* The rows of a batch, fetched from the data: *seconds. */
static pmlp_result pmlp__layer_probe_input(pmlp__layer_probe *p, const pmlp_model *model,
                                           const pmlp_trainer_desc *d, double *seconds) {
    double all[PMLP__LAYER_PROBES];
    pmlp_result result = pmlp__layer_probe_data(p, model, d);
    int i;
    for (i = 0; result == PMLP_OK && i < PMLP__LAYER_PROBES; i++) {
        const double begin = pmlp__clock();
        result = p->backend->input(p->context, d->batch, pmlp__n_in(model, 0), &p->zeros, NULL, 0,
                                   (float *)p->x);
        if (result == PMLP_OK) result = p->backend->synchronize(p->context);
        all[i] = pmlp__clock() - begin;
    }
    *seconds = result == PMLP_OK ? pmlp__median(all + 2, PMLP__LAYER_PROBES - 2) : 0.0;
    return result;
}

/* F and I by micro-batch, W in two halves, of which U takes one with it. */
static pmlp_result pmlp__layer_probe_run(const pmlp__layer_probe *p, const pmlp_trainer_desc *d,
                                         bool has_input_gradient, double *seconds) {
    const pmlp_backend *b = p->backend;
    const size_t half = d->batch / 2, m = (size_t)d->microbatches;
    const double begin = pmlp__clock();
    float *x = (float *)p->x, *y = (float *)p->y, *dz = (float *)p->dz, *dx = (float *)p->dx;
    pmlp_update_args u;
    pmlp_result result = PMLP_OK;
    size_t op, i;
    for (op = 0; op < (has_input_gradient ? 2u : 1u); op++)
        for (i = 0; result == PMLP_OK && i < m; i++) {
            const size_t from = d->batch * i / m, rows = d->batch * (i + 1) / m - from;
            if (rows == 0) continue;
            result = op == 0 ? b->forward(p->context, p->layer, 0, rows, x + from * p->x_row,
                                          y + from * p->y_row)
                             : b->backward_input(p->context, p->layer, 0, rows,
                                                 dz + from * p->y_row, x + from * p->x_row,
                                                 dx + from * p->x_row);
        }
    if (result == PMLP_OK && p->loss.rows > 0) result = b->loss(p->context, p->layer, &p->loss);
    if (result == PMLP_OK && half > 0)
        result = b->backward_weight(p->context, p->layer, half, x, dz, false);
    memset(&u, 0, sizeof u);
    u.optimizer = d->optimizer;
    u.momentum = d->momentum;
    u.beta1 = d->beta1;
    u.beta2 = d->beta2;
    u.epsilon = d->epsilon;
    u.gradient_scale = 1.0f;
    u.step = 1;
    u.rows = d->batch - half;
    u.x = x + half * p->x_row;
    u.dz = dz + half * p->y_row;
    u.anew = half == 0;
    if (result == PMLP_OK) result = b->update(p->context, p->layer, &u);
    if (result == PMLP_OK) result = b->synchronize(p->context);
    *seconds = pmlp__clock() - begin;
    return result;
}

/* Each layer by itself: costs [layers]; and what every stage that has a part of layer 0 pays for the
   input, *input. */
static pmlp_result pmlp__measure_alone(const pmlp_model *model, const pmlp_trainer_desc *d,
                                       double *costs, double *input, pmlp_error *error) {
    double seconds[PMLP__LAYER_PROBES];
    pmlp__layer_probe p;
    pmlp_backend_desc open;
    pmlp_error why;
    pmlp_result result;
    int l, i;
    memset(&p, 0, sizeof p);
    memset(&open, 0, sizeof open);
    p.backend = d->backend;
    open.workers = 1;
    open.allocator = d->allocator;
    memset(&why, 0, sizeof why);
    result = d->backend->open(d->backend, &open, &p.context, &why);
    if (result != PMLP_OK)
        return pmlp__fail(error, result, "the back end '%s' cannot be opened: %.200s",
                          d->backend->name, why.text[0] ? why.text : pmlp_result_text(result));
    for (l = 0; result == PMLP_OK && l < model->desc.layers; l++) {
        result = pmlp__layer_probe_begin(&p, model, d, l);
        if (result == PMLP_OK && l == 0) result = pmlp__layer_probe_input(&p, model, d, input);
        if (result == PMLP_OK && l == model->desc.layers - 1)
            result = pmlp__layer_probe_loss(&p, model, d);
        for (i = 0; result == PMLP_OK && i < PMLP__LAYER_PROBES; i++)
            result = pmlp__layer_probe_run(&p, d, l > 0, &seconds[i]);
        pmlp__layer_probe_end(&p, model, d);
        costs[l] = result == PMLP_OK ? pmlp__median(seconds + 2, PMLP__LAYER_PROBES - 2) : 0.0;
        if (costs[l] <= 0.0) costs[l] = 1e-9; /* a coarse clock */
    }
    d->backend->close(p.context);
    if (result != PMLP_OK)
        pmlp__fail(error, result, "measuring layer %d: %s", l - 1, pmlp_result_text(result));
    return result;
}

#define PMLP__PROBE_STEPS 9

/* A copy of the model is trained for some steps on zeros. *arrays is what pmlp_trainer_costs() has
   found, [7][stages] and then the latency, to be freed. */
static pmlp_result pmlp__probe(const pmlp_model *model, const pmlp_trainer_desc *desc,
                               double **arrays, pmlp_error *error) {
    pmlp_trainer_desc d = *desc;
    pmlp_model *copy = NULL;
    pmlp_trainer *probe = NULL;
    pmlp_costs costs;
    pmlp_data zeros;
    float *x = NULL;
    pmlp_result result = pmlp_model_clone(model, &copy, error);
    int i;
    memset(&d.logger, 0, sizeof d.logger);
    memset(&zeros, 0, sizeof zeros);
    zeros.rows = d.batch;
    d.trace = PMLP__PROBE_STEPS;
    d.slots = 0; /* the caller's are for another schedule */
    d.group = NULL;
    d.replicas = 1;
    if (result == PMLP_OK) result = pmlp__zero_data(model, &zeros, &x, error);
    if (result == PMLP_OK) result = pmlp_trainer_create(copy, &d, &probe, error);
    for (i = 0; result == PMLP_OK && i < PMLP__PROBE_STEPS + 2; i++)
        result = pmlp_trainer_step(probe, &zeros, NULL);
    if (result == PMLP_OK) result = pmlp_trainer_costs(probe, &costs);
    if (result == PMLP_OK) {
        *arrays = probe->costs; /* they outlive it */
        probe->costs = NULL;
    } else if (probe) {
        *error = *pmlp_trainer_error(probe);
    }
    pmlp_trainer_destroy(probe);
    pmlp_model_destroy(copy);
    pmlp__delete(&model->desc.allocator, x);
    return result;
}

/* What a layer takes in its stage by what it took alone; a measurement that went wrong shall not
   ruin the cut. */
static double pmlp__company(double together, double alone) {
    const double ratio = alone > 0.0 ? together / alone : 1.0;
    return !(ratio > 0.5) ? 0.5 : ratio > 2.0 ? 2.0 : ratio;
}

/* Scales the costs of layers such that those of each stage add up to what it takes, seconds
   [stages], without the input, which stages pay alike. Where layer 0 is cut, its cost is that of
   stage 0, and the others make the rest. */
static void pmlp__scale_costs(const pmlp_model *model, const pmlp_cut *cuts, int stages,
                              const double *seconds, double input, double *costs) {
    const pmlp_cut bottom = {0, 0}, top = {model->desc.layers, 0};
    const double first = costs[0], width = (double)pmlp__n_out(model, 0);
    int s, l;
    for (s = 0; s < stages; s++) {
        const pmlp_cut begin = s > 0 ? cuts[s - 1] : bottom;
        const pmlp_cut end = s + 1 < stages ? cuts[s] : top;
        const double columns = begin.layer > 0 ? 0.0
                               : end.layer > 0 ? width - begin.column
                                               : (double)end.column - begin.column;
        const double own = seconds[s] - (begin.layer > 0 ? 0.0 : input);
        double others = 0.0, scale;
        for (l = begin.layer > 0 ? begin.layer : 1; l < end.layer; l++) others += costs[l];
        if (s == 0) {
            scale = pmlp__company(own, others + first * columns / width);
            costs[0] = first * scale;
        } else {
            scale = pmlp__company(own - costs[0] * columns / width, others);
        }
        for (l = begin.layer > 0 ? begin.layer : 1; l < end.layer; l++) costs[l] *= scale;
    }
}

/* Layers in the company of those with which they will share a core and its caches: the network is
   cut by what they take alone, and each stage of it is measured as a whole, one after the other on
   this thread. Costs stay as they are if there is only one stage. */
static pmlp_result pmlp__measure_stages(const pmlp_model *model, const pmlp_trainer_desc *desc,
                                        double input, double *costs, pmlp_error *error) {
    pmlp_trainer_desc d = *desc;
    const int stages = d.custom ? pmlp_schedule_stages(d.custom) : d.workers * d.virtual_stages;
    double *arrays = NULL;
    pmlp_cut *cuts;
    pmlp_result result;
    int s;
    if (stages == 1) return PMLP_OK;
    cuts = (pmlp_cut *)pmlp__new(&d.allocator, (size_t)stages, sizeof *cuts);
    if (!cuts) return pmlp__no_memory(error, "the cuts");
    result = pmlp_partition(model, stages, d.whole_layers, costs, cuts, NULL, error);
    d.custom = NULL;
    d.costs = NULL;
    d.schedule = PMLP_SCHEDULE_GPIPE;
    d.workers = stages;
    d.virtual_stages = 1;
    d.no_threads = true;
    d.cuts = cuts;
    if (result == PMLP_OK) result = pmlp__probe(model, &d, &arrays, error);
    for (s = 0; result == PMLP_OK && s < stages; s++)
        arrays[s] = (arrays[s] + arrays[stages + s] + arrays[2 * stages + s]) * d.microbatches +
                    arrays[3 * stages + s];
    if (result == PMLP_OK) pmlp__scale_costs(model, cuts, stages, arrays, input, costs);
    pmlp__delete(&d.allocator, arrays);
    pmlp__delete(&d.allocator, cuts);
    return result;
}

PMLP_API pmlp_result pmlp_measure_layers(const pmlp_model *model, const pmlp_trainer_desc *desc,
                                         double *costs, pmlp_error *error) {
    pmlp_trainer_desc d;
    pmlp_result result;
    double input = 0.0;
    if (!model || !desc || !costs)
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "%s: is NULL",
                          !model ? "model" : desc ? "costs" : "desc");
    result = pmlp__validate_desc(model, desc, error);
    if (result != PMLP_OK) return result;
    d = pmlp__trainer_defaults(desc);
    result = pmlp__measure_alone(model, &d, costs, &input, error);
    return result == PMLP_OK ? pmlp__measure_stages(model, &d, input, costs, error) : result;
}

static bool pmlp__measures_layers(const pmlp_trainer_desc *d, int stages) {
    return d->measure_layers && stages > 1 && !d->layer_costs && !d->cuts;
}

/* What was measured on rank 0, or could not be, is what all go by. */
static pmlp_result pmlp__from_rank_0(pmlp_trainer *t, pmlp_result measured, double *values,
                                     size_t count, pmlp_error *error) {
    pmlp_result result = pmlp__agree(t, measured, NULL, error);
    if (result != PMLP_OK || !t->group) return result;
    result = t->group->broadcast(t->group->context, 0, values, count * sizeof *values,
                                 t->desc.deadline);
    return result == PMLP_OK ? result : pmlp__part(t, "sharing what was measured", result, error);
}

/* Fills cuts [stages - 1] as the desc says, and costs [layers] with what each layer costs. */
static pmlp_result pmlp__choose_cuts(const pmlp_model *model, const pmlp_trainer_desc *d,
                                     int stages, double *costs, pmlp_cut *cuts,
                                     pmlp_error *error) {
    pmlp_result result = pmlp__check_layer_costs(model, d->layer_costs, error);
    int l;
    if (result != PMLP_OK) return result;
    for (l = 0; l < model->desc.layers; l++)
        costs[l] = d->layer_costs ? d->layer_costs[l]
                                  : pmlp__output_cost(model, NULL, l) *
                                        (double)pmlp__n_out(model, l);
    if (pmlp__measures_layers(d, stages)) {
        result = pmlp_measure_layers(model, d, costs, error);
        if (result != PMLP_OK) return result;
    }
    if (!d->cuts) return pmlp_partition(model, stages, d->whole_layers, costs, cuts, NULL, error);
    memcpy(cuts, d->cuts, (size_t)(stages - 1) * sizeof *cuts);
    return PMLP_OK;
}

static pmlp_result pmlp__trainer_cuts(pmlp_trainer *t, pmlp_error *error) {
    const int stages = t->schedule->stages;
    pmlp_result result = PMLP_OK;
    t->cuts = (pmlp_cut *)pmlp__new(&t->desc.allocator, (size_t)stages, sizeof *t->cuts);
    if (!t->cuts) return pmlp__no_memory(error, "the cuts");
    t->layer_costs = (double *)pmlp__new(&t->desc.allocator, (size_t)t->model->desc.layers,
                                         sizeof *t->layer_costs);
    if (!t->layer_costs) return pmlp__no_memory(error, "the costs of the layers");
    if (t->group && pmlp__measures_layers(&t->desc, stages)) {
        if (t->group->rank == 0)
            result = pmlp_measure_layers(t->model, &t->desc, t->layer_costs, error);
        result = pmlp__from_rank_0(t, result, t->layer_costs, (size_t)t->model->desc.layers, error);
        if (result != PMLP_OK) return result;
        t->desc.layer_costs = t->layer_costs;
    }
    result = pmlp__choose_cuts(t->model, &t->desc, stages, t->layer_costs, t->cuts, error);
    t->desc.cuts = t->cuts;
    t->desc.layer_costs = t->layer_costs;
    return result;
}

/* Arrays that belong to the trainer as a whole. */
static pmlp_result pmlp__trainer_arrays(pmlp_trainer *t, pmlp_error *error) {
    const pmlp_allocator *allocator = &t->desc.allocator;
    const size_t workers = (size_t)t->schedule->workers, stages = (size_t)t->schedule->stages;
    const size_t rows = (size_t)t->pass_batches * t->desc.batch;
    size_t neurons = 0;
    int l;
    t->workers = (pmlp__worker *)pmlp__new(allocator, workers, sizeof *t->workers);
    t->stages = (pmlp__stage *)pmlp__new(allocator, stages, sizeof *t->stages);
    t->connected = (pmlp__edge *)pmlp__new(allocator, 6 * stages, sizeof *t->connected);
    t->row_loss = (double *)pmlp__new(allocator, rows, sizeof *t->row_loss);
    t->row_hit = (unsigned char *)pmlp__new(allocator, rows, 1);
    t->costs = (double *)pmlp__new(allocator, 7 * stages + 1, sizeof *t->costs);
    t->idle = (double *)pmlp__new(allocator, workers, sizeof *t->idle);
    t->busy = (double *)pmlp__new(allocator, workers, sizeof *t->busy);
    t->squares_at =
        (size_t *)pmlp__new(allocator, (size_t)t->model->desc.layers, sizeof *t->squares_at);
    for (l = 0; t->squares_at && l < t->model->desc.layers; l++) {
        t->squares_at[l] = neurons;
        neurons += pmlp__n_out(t->model, l);
    }
    t->squares = (double *)pmlp__new(allocator, neurons, sizeof *t->squares);
    if (t->group) {
        const size_t results = pmlp__results_size(t, (size_t)t->pass_batches * t->share);
        t->mail_size = results > 1 + neurons ? results : 1 + neurons;
        t->mail = (double *)pmlp__new(allocator, 1 + (size_t)t->group->ranks,
                                      t->mail_size * sizeof *t->mail);
    }
    if (t->workers && t->stages && t->connected && t->row_loss && t->row_hit && t->idle &&
        t->busy && t->costs && t->squares_at && t->squares && (t->mail || !t->group))
        return PMLP_OK;
    return pmlp__no_memory(error, "a trainer");
}

/* Does something on a worker's own thread, while the others are at rest: memory lies near the core
   that touches it first, and there it shall be used. */
static pmlp_result pmlp__on_worker(pmlp_trainer *t, int worker, pmlp__task task, int index,
                                   pmlp_error *error) {
    pmlp__worker *w = &t->workers[worker];
    if (!w->has_thread) return task(t, index, error);
    pmlp__store(&t->done, 0);
    pmlp__give_task(w, task, index);
    pmlp__await_tasks(t, 1);
    if (w->task_result != PMLP_OK) *error = w->task_error;
    return w->task_result;
}

static pmlp_result pmlp__worker_bind(pmlp_trainer *t, int index, pmlp_error *error) {
    (void)t;
    if (pmlp__bind_thread(index)) return PMLP_OK;
    return pmlp__fail(error, PMLP_ERROR_THREAD, "worker %d: not bound to a core", index);
}

static pmlp_result pmlp__trainer_threads(pmlp_trainer *t, pmlp_error *error) {
    int i;
    t->polled = t->edges != pmlp_thread_edges() || t->group;
    for (i = t->first_worker; i < t->end_worker; i++) {
        pmlp__worker *w = &t->workers[i];
        w->trainer = t;
        w->index = i;
        w->pauses = PMLP__MOST_PAUSES;
        w->has_mutex = pmlp__mutex_init(&w->mutex);
        w->has_cond = pmlp__cond_init(&w->cond);
        if (!w->has_mutex || !w->has_cond)
            return pmlp__fail(error, PMLP_ERROR_THREAD, "worker %d: no mutex could be made", i);
    }
    for (i = t->first_worker + 1; !t->desc.no_threads && i < t->end_worker; i++) {
        pmlp__worker *w = &t->workers[i];
        w->start.run = pmlp__worker_main;
        w->start.argument = w;
        w->has_thread = pmlp__thread_create(&w->thread, &w->start);
        if (!w->has_thread)
            return pmlp__fail(error, PMLP_ERROR_THREAD,
                              "the thread of worker %d could not be started", i);
        if (t->desc.bind_threads && pmlp__on_worker(t, i, pmlp__worker_bind, i, error) != PMLP_OK)
            pmlp__log(&t->desc.logger, PMLP_LOG_WARNING, "%s", error->text);
    }
    return PMLP_OK;
}

static pmlp_result pmlp__worker_open(pmlp_trainer *t, int index, pmlp_error *error) {
    pmlp__worker *w = &t->workers[index];
    pmlp_backend_desc open;
    pmlp_result result;
    open.worker = index - t->first_worker;
    open.workers = t->end_worker - t->first_worker;
    open.allocator = t->desc.allocator;
    result = t->backend->open(t->backend, &open, &w->context, error);
    if (result != PMLP_OK && error->text[0] == '\0')
        pmlp__fail(error, result, "worker %d could not open the back end '%s'", index,
                   t->backend->name);
    return result;
}

static pmlp_result pmlp__stage_buffer(pmlp_trainer *t, pmlp__stage *stage, int l, float **buffer,
                                      bool *owned) {
    const size_t rows = (size_t)t->ring * t->share;
    void *memory = NULL;
    pmlp_result result;
    if (pmlp__mul_overflows(rows, stage->row[l] * sizeof(float))) return PMLP_ERROR_MEMORY;
    result = t->backend->alloc(pmlp__context_of(t, stage), rows * stage->row[l] * sizeof(float),
                               &memory);
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
    s->is_here = s->worker >= t->first_worker && s->worker < t->end_worker;
    s->versions =
        t->desc.no_stashing ? 1 : pmlp_schedule_versions(t->many ? t->many : t->schedule, index);
}

/* The layers of a stage with their weights. */
static pmlp_result pmlp__stage_weights(pmlp_trainer *t, pmlp__stage *s) {
    void *context = pmlp__context_of(t, s);
    pmlp_result result = PMLP_OK;
    int l;
    for (l = 0; result == PMLP_OK && l < s->layers; l++) {
        const int at = s->first_layer + l;
        pmlp_layer_desc d = pmlp__layer_desc(t->model, at, t->desc.optimizer);
        d.versions = s->versions;
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
static pmlp_result pmlp__stage_layers(pmlp_trainer *t, int index, pmlp_error *error) {
    const pmlp_allocator *allocator = &t->desc.allocator;
    pmlp__stage *s = &t->stages[index];
    pmlp_result result;
    size_t n;
    int l;
    n = (size_t)s->layers;
    s->handles = (void **)pmlp__new(allocator, n, sizeof *s->handles);
    s->x = (float **)pmlp__new(allocator, n + 1, sizeof *s->x);
    s->dz = (float **)pmlp__new(allocator, n + 1, sizeof *s->dz);
    s->owns_x = (bool *)pmlp__new(allocator, n + 1, sizeof *s->owns_x);
    s->owns_dz = (bool *)pmlp__new(allocator, n + 1, sizeof *s->owns_dz);
    s->row = (size_t *)pmlp__new(allocator, n + 1, sizeof *s->row);
    s->version_at =
        (uint64_t *)pmlp__new(allocator, (size_t)s->versions, sizeof *s->version_at);
    s->version_of = (uint64_t *)pmlp__new(
        allocator, (size_t)t->ring * (size_t)t->schedule->microbatches, sizeof *s->version_of);
    s->own = (bool *)pmlp__new(allocator, (size_t)t->schedule->microbatches, sizeof *s->own);
    if (!s->handles || !s->x || !s->dz || !s->owns_x || !s->owns_dz || !s->row || !s->version_at ||
        !s->version_of || !s->own)
        return pmlp__no_memory(error, "a stage");
    for (l = 0; l <= s->layers; l++) {
        const int at = s->first_layer + l;
        s->row[l] = t->backend->row_floats(pmlp__context_of(t, s), (size_t)t->model->sizes[at],
                                           at ? t->model->activations[at - 1] : PMLP_LINEAR);
    }
    result = pmlp__stage_weights(t, s);
    if (result != PMLP_OK)
        pmlp__fail(error, result, "the layers of stage %d: %s", index,
                   pmlp__reason(&t->workers[s->worker], result));
    return result;
}

/* A batch's x and dz. The boundary to the stage above is one buffer for both if memory is
   shared. */
static pmlp_result pmlp__stage_buffers(pmlp_trainer *t, int index, pmlp_error *error) {
    pmlp__stage *s = &t->stages[index];
    pmlp__stage *above = s->is_last ? NULL : &t->stages[index + 1];
    const int n = s->layers;
    const bool shared =
        above && above->is_here && (t->edges->shared || above->worker == s->worker);
    pmlp_result result = PMLP_OK;
    int l;
    for (l = 0; result == PMLP_OK && l <= n; l++)
        if (!s->x[l]) result = pmlp__stage_buffer(t, s, l, &s->x[l], &s->owns_x[l]);
    for (l = pmlp__reads_input(s) ? 1 : 0; result == PMLP_OK && l <= n; l++)
        if (!s->dz[l]) result = pmlp__stage_buffer(t, s, l, &s->dz[l], &s->owns_dz[l]);
    if (result == PMLP_OK && shared) {
        above->x[above->below] = s->x[n];
        above->dz[above->below] = s->dz[n];
        above->shares_below = s->below == 0 || s->shares_below;
    }
    if (result != PMLP_OK)
        pmlp__fail(error, result, "the batch of stage %d: %s", index,
                   pmlp__reason(&t->workers[s->worker], result));
    return result;
}

/* What an edge is for. Each kind of each stage and replica has a channel of its own. */
enum { PMLP__FORWARDS, PMLP__BACKWARDS, PMLP__TO_NEXT, PMLP__TO_BEFORE, PMLP__EDGE_KINDS };

/* One queue per boundary and direction: activations and gradients of different stages in one queue
   would be mixed up as soon as a worker has two stages. Between workers of this rank it is the back
   end's, else the group's. d has the stages, the ranks, the kind of message and its size. */
static pmlp_result pmlp__connect_edge(pmlp_trainer *t, pmlp_edge_desc *d, int replica, int kind,
                                      pmlp__edge **out, pmlp_error *error) {
    const int lower = d->to_stage < d->from_stage ? d->to_stage : d->from_stage;
    const int mine = t->group ? t->group->rank : 0;
    const bool from_here = d->from_rank == mine, to_here = d->to_rank == mine;
    pmlp__edge *edge = &t->connected[t->connected_count];
    pmlp_result result;
    d->from_worker = t->stages[d->from_stage].worker;
    d->to_worker = t->stages[d->to_stage].worker;
    d->channel = (replica * t->schedule->stages + lower) * PMLP__EDGE_KINDS + kind;
    d->seconds = t->desc.deadline;
    d->from_context = from_here ? t->workers[d->from_worker].context : NULL;
    d->to_context = to_here ? t->workers[d->to_worker].context : NULL;
    d->wake = pmlp__wake;
    d->from_wake = from_here ? &t->workers[d->from_worker] : NULL;
    d->to_wake = to_here ? &t->workers[d->to_worker] : NULL;
    d->allocator = t->desc.allocator;
    edge->table = from_here && to_here ? t->edges : t->group->edges;
    edge->other = from_here && to_here ? -1 : from_here ? d->to_rank : d->from_rank;
    result = edge->table->connect(edge->table, d, &edge->handle, error);
    if (result == PMLP_OK) {
        t->connected_count++;
        *out = edge;
    } else if (error->text[0] == '\0') {
        const char *why = result == PMLP_ERROR_RANK ? pmlp__group_reason(t->group) : "";
        pmlp__fail(error, result,
                   "the edge from stage %d to stage %d could not be connected%s%.300s",
                   d->from_stage, d->to_stage, *why ? ": " : "", why);
    }
    return result;
}

/* Both edges between a stage and the one above, if any of the two is here. */
static pmlp_result pmlp__connect_stages(pmlp_trainer *t, int lower, pmlp_error *error) {
    pmlp__stage *s = &t->stages[lower], *above = &t->stages[lower + 1];
    const int low_rank = pmlp__rank_of(t, t->replica, s->worker);
    const int high_rank = pmlp__rank_of(t, t->replica, above->worker);
    const size_t m = (size_t)t->desc.microbatches;
    pmlp__edge *edge = NULL;
    pmlp_edge_desc d;
    pmlp_result result;
    if (s->worker == above->worker || (!s->is_here && !above->is_here)) return PMLP_OK;
    memset(&d, 0, sizeof d);
    d.slots = t->desc.slots;
    d.row_bytes = (s->is_here ? s->row[s->layers] : above->row[above->below]) * sizeof(float);
    d.max_rows = (t->share + m - 1) / m;
    d.from_stage = lower;
    d.to_stage = lower + 1;
    d.from_rank = low_rank;
    d.to_rank = high_rank;
    result = pmlp__connect_edge(t, &d, t->replica, PMLP__FORWARDS, &edge, error);
    if (result != PMLP_OK) return result;
    s->send_f = above->recv_f = edge;
    d.from_stage = lower + 1;
    d.to_stage = lower;
    d.from_rank = high_rank;
    d.to_rank = low_rank;
    d.gradient = true;
    result = pmlp__connect_edge(t, &d, t->replica, PMLP__BACKWARDS, &edge, error);
    if (result == PMLP_OK) above->send_b = s->recv_b = edge;
    return result;
}

/* The bytes of a stage's largest gradient. */
static pmlp_result pmlp__largest_gradient(pmlp_trainer *t, const pmlp__stage *s, size_t *bytes) {
    pmlp_result result = PMLP_OK;
    float *data;
    size_t floats;
    int l;
    *bytes = 0;
    for (l = 0; result == PMLP_OK && l < s->layers; l++) {
        result = t->backend->gradient(pmlp__context_of(t, s), s->handles[l], &data, &floats);
        if (result == PMLP_OK && floats * sizeof *data > *bytes) *bytes = floats * sizeof *data;
    }
    return result;
}

/* The links of the chain from a stage of one replica to the same of the next, there and back. */
static pmlp_result pmlp__connect_replicas(pmlp_trainer *t, pmlp__stage *s, int replica,
                                          pmlp_error *error) {
    const bool is_lower = t->replica == replica;
    pmlp_edge_desc d;
    pmlp_result result;
    memset(&d, 0, sizeof d);
    d.from_stage = d.to_stage = s->index;
    d.gradient = true;
    d.slots = 2;
    d.max_rows = 1;
    result = pmlp__largest_gradient(t, s, &d.row_bytes);
    if (result != PMLP_OK)
        return pmlp__fail(error, result, "the gradients of stage %d: %s", s->index,
                          pmlp__reason(&t->workers[s->worker], result));
    d.from_rank = pmlp__rank_of(t, replica, s->worker);
    d.to_rank = pmlp__rank_of(t, replica + 1, s->worker);
    result = pmlp__connect_edge(t, &d, replica, PMLP__TO_NEXT,
                                is_lower ? &s->to_next : &s->from_before, error);
    if (result != PMLP_OK) return result;
    d.from_rank = d.to_rank;
    d.to_rank = pmlp__rank_of(t, replica, s->worker);
    return pmlp__connect_edge(t, &d, replica, PMLP__TO_BEFORE,
                              is_lower ? &s->from_next : &s->to_before, error);
}

/* How the replicas' gradients will be summed. */
static pmlp_result pmlp__connect_sums(pmlp_trainer *t, pmlp_error *error) {
    pmlp_result result = PMLP_OK;
    int i, j;
    for (i = 0; !t->desc.allreduce && i < t->schedule->stages; i++)
        for (j = 0; result == PMLP_OK && j + 1 < t->desc.replicas; j++)
            if (t->stages[i].is_here && (t->replica == j || t->replica == j + 1))
                result = pmlp__connect_replicas(t, &t->stages[i], j, error);
    for (i = t->first_worker; t->desc.allreduce && result == PMLP_OK && i < t->end_worker; i++) {
        result = t->group->sum(t->group->context, i, t->desc.replicas, t->workers[i].context, NULL,
                               0, t->desc.deadline);
        if (result != PMLP_OK)
            pmlp__fail(error, result, "the sums of worker %d: %.400s", i,
                       pmlp__reason(&t->workers[i], result));
    }
    return result;
}

static pmlp_result pmlp__trainer_stages(pmlp_trainer *t, pmlp_error *error) {
    const int stages = t->schedule->stages;
    pmlp_result result = PMLP_OK;
    int i;
    for (i = 0; i < stages; i++) pmlp__stage_extent(t, i);
    for (i = 0; result == PMLP_OK && i < stages; i++)
        if (t->stages[i].is_here)
            result = pmlp__on_worker(t, t->stages[i].worker, pmlp__stage_layers, i, error);
    for (i = 0; result == PMLP_OK && i < stages; i++)
        if (t->stages[i].is_here)
            result = pmlp__on_worker(t, t->stages[i].worker, pmlp__stage_buffers, i, error);
    return result;
}

/* In one order for all ranks: a connect() may wait for the other end. */
static pmlp_result pmlp__trainer_connect(pmlp_trainer *t, pmlp_error *error) {
    pmlp_result result = PMLP_OK;
    int i;
    for (i = 0; result == PMLP_OK && i + 1 < t->schedule->stages; i++)
        result = pmlp__connect_stages(t, i, error);
    if (result == PMLP_OK && t->desc.replicas > 1) result = pmlp__connect_sums(t, error);
    return result;
}

#define PMLP__TRACED_BATCHES 4

/* Room for what each worker does in one step: its actions, or those of an asynchronous pass's first
   batches. */
static pmlp_result pmlp__trainer_traces(pmlp_trainer *t, pmlp_error *error) {
    const int kept = t->desc.trace;
    int i;
    for (i = t->first_worker; kept > 0 && i < t->end_worker; i++) {
        pmlp__trace *trace = &t->workers[i].trace;
        const int actions = t->lowered->lists[i].count;
        const int batches = t->schedule->per_update ? PMLP__TRACED_BATCHES : 1;
        if (actions > INT_MAX / batches) return pmlp__no_memory(error, "a trace");
        trace->microbatches = batches * t->schedule->microbatches;
        trace->capacity = batches * actions;
        if (!pmlp__mul_overflows((size_t)kept, (size_t)trace->capacity))
            trace->spans = (pmlp_span *)pmlp__new(
                &t->desc.allocator, (size_t)kept * (size_t)trace->capacity, sizeof *trace->spans);
        trace->counts = (int *)pmlp__new(&t->desc.allocator, (size_t)kept, sizeof *trace->counts);
        if (!trace->spans || !trace->counts) return pmlp__no_memory(error, "a trace");
    }
    return PMLP_OK;
}

/* Which workers are here. Each rank has some, since there are no more ranks than workers; and they
   have something to do: no schedule has a worker without a stage. */
static void pmlp__trainer_workers(pmlp_trainer *t) {
    const int ranks = t->group ? t->group->ranks / t->desc.replicas : 1;
    const int mine = t->group ? t->group->rank % ranks : 0;
    t->first_worker = pmlp__block(t, mine);
    t->end_worker = pmlp__block(t, mine + 1);
}

/* All but what reaches out to other ranks. */
static pmlp_result pmlp__trainer_build(pmlp_trainer *t, pmlp_error *error) {
    pmlp_result result = pmlp__trainer_schedules(t, error);
    int i;
    if (result != PMLP_OK) return result;
    pmlp__trainer_workers(t);
    result = pmlp__trainer_cuts(t, error);
    if (result == PMLP_OK) result = pmlp__trainer_arrays(t, error);
    if (result == PMLP_OK) result = pmlp__trainer_threads(t, error);
    for (i = t->first_worker; result == PMLP_OK && i < t->end_worker; i++)
        result = pmlp__on_worker(t, i, pmlp__worker_open, i, error);
    if (result == PMLP_OK) result = pmlp__trainer_stages(t, error);
    return result == PMLP_OK ? pmlp__trainer_traces(t, error) : result;
}

/* Costs whose arrays are [7][stages], with what is no array behind these. */
static pmlp_costs pmlp__costs_in(const double *arrays, int stages) {
    pmlp_costs costs;
    memset(&costs, 0, sizeof costs);
    costs.stages = stages;
    costs.f = arrays;
    costs.i = arrays + stages;
    costs.w = arrays + 2 * stages;
    costs.u = arrays + 3 * stages;
    costs.message_bytes = arrays + 4 * stages;
    costs.held = arrays + 5 * stages;
    costs.ahead = arrays + 6 * stages;
    costs.latency = arrays[7 * stages];
    return costs;
}

/* Auto without costs: those of some steps, measured on rank 0, are what the search goes by. Then
   everything else is as if the costs had been given. */
static pmlp_result pmlp__trainer_build_auto(pmlp_trainer *t, pmlp_error *error) {
    const int stages = t->desc.workers * t->desc.virtual_stages;
    const size_t count = 7 * (size_t)stages + 1;
    double *arrays = NULL;
    pmlp_costs costs;
    pmlp_result result = PMLP_OK;
    if (t->group && t->group->rank > 0) {
        arrays = (double *)pmlp__new(&t->desc.allocator, count, sizeof *arrays);
        if (!arrays) result = pmlp__no_memory(error, "costs");
    } else {
        pmlp_trainer_desc d = t->desc;
        d.batch = t->share;
        d.schedule = d.virtual_stages > 1 ? PMLP_SCHEDULE_LOOPED_BFS : PMLP_SCHEDULE_GPIPE;
        d.no_threads = d.no_threads || d.group; /* not all workers are here */
        result = pmlp__probe(t->model, &d, &arrays, error);
        /* without threads a message is late by what the others do meanwhile */
        if (result == PMLP_OK && d.no_threads) arrays[count - 1] = 0.0;
    }
    result = pmlp__from_rank_0(t, result, arrays, count, error);
    if (result == PMLP_OK) {
        costs = pmlp__costs_in(arrays, stages);
        t->desc.costs = &costs;
        result = pmlp__trainer_build(t, error);
    }
    t->desc.costs = NULL;
    pmlp__delete(&t->desc.allocator, arrays);
    return result;
}

static void pmlp__model_facts(const pmlp_model *model, pmlp__text *facts) {
    const size_t layers = (size_t)model->desc.layers;
    pmlp__fact(facts, "layers", "%d", model->desc.layers);
    pmlp__fact(facts, "inputs", "%d", model->sizes[0]);
    pmlp__fact(facts, "outputs", "%d", model->sizes[layers]);
    pmlp__fact_digest(facts, "sizes",
                      pmlp_hash(0, model->sizes, (layers + 1) * sizeof *model->sizes));
    pmlp__fact_digest(facts, "activations",
                      pmlp_hash(0, model->activations, layers * sizeof *model->activations));
    pmlp__fact(facts, "loss", "%s", pmlp_loss_name(model->desc.loss));
    pmlp__fact_digest(facts, "weights",
                      pmlp_hash(0, model->params, model->param_count * sizeof *model->params));
}

/* What all ranks must have set alike. */
static void pmlp__trainer_facts(pmlp_trainer *t) {
    const pmlp_trainer_desc *d = &t->desc;
    const pmlp_costs *c = d->costs;
    pmlp__text facts = pmlp__facts(t, "create");
    pmlp__fact(&facts, "version", "%d.%d.%d", PMLP_VERSION_MAJOR, PMLP_VERSION_MINOR,
               PMLP_VERSION_PATCH);
    pmlp__fact(&facts, "backend", "%s", d->backend->name);
    pmlp__fact(&facts, "exact", "%d", d->backend->exact);
    pmlp__fact(&facts, "workers", "%d", d->workers);
    pmlp__fact(&facts, "virtual_stages", "%d", d->virtual_stages);
    pmlp__fact(&facts, "microbatches", "%d", d->microbatches);
    pmlp__fact(&facts, "batch", "%.0f", (double)d->batch);
    pmlp__fact(&facts, "schedule", "%s", pmlp_schedule_kind_name(d->schedule));
    pmlp__fact(&facts, "memory", "%.9g", d->memory);
    pmlp__fact(&facts, "no_stashing", "%d", d->no_stashing);
    pmlp__fact(&facts, "whole_layers", "%d", d->whole_layers);
    pmlp__fact(&facts, "measure_layers", "%d", d->measure_layers);
    pmlp__fact(&facts, "costs", "%s, %.9g", c ? "given" : "no", c ? c->latency : 0.0);
    pmlp__fact(&facts, "slots", "%d", d->slots);
    pmlp__fact(&facts, "w_rows", "%.0f", (double)d->w_rows);
    pmlp__fact(&facts, "optimizer", "%s", pmlp_optimizer_name(d->optimizer));
    pmlp__fact(&facts, "learning_rate", "%.9g", (double)d->learning_rate);
    pmlp__fact(&facts, "momentum", "%.9g", (double)d->momentum);
    pmlp__fact(&facts, "beta1", "%.9g", (double)d->beta1);
    pmlp__fact(&facts, "beta2", "%.9g", (double)d->beta2);
    pmlp__fact(&facts, "epsilon", "%.9g", (double)d->epsilon);
    pmlp__fact(&facts, "weight_decay", "%.9g", (double)d->weight_decay);
    pmlp__fact(&facts, "clip_norm", "%.9g", (double)d->clip_norm);
    pmlp__fact(&facts, "bad_numbers", "%d", (int)d->bad_numbers);
    pmlp__fact(&facts, "seed", "%.0f", (double)d->seed);
    pmlp__fact(&facts, "no_shuffle", "%d", d->no_shuffle);
    pmlp__fact(&facts, "gradient_norm", "%d", d->gradient_norm);
    pmlp__fact(&facts, "keep_gradients", "%d", d->keep_gradients);
    pmlp__fact(&facts, "replicas", "%d", d->replicas);
    pmlp__fact(&facts, "allreduce", "%d", d->allreduce);
    pmlp__fact(&facts, "edges", "transport %d, %d", (int)d->edges->transport,
               (int)t->group->edges->transport);
    pmlp__model_facts(t->model, &facts);
}

/* What all ranks must have come to. */
static void pmlp__build_facts(pmlp_trainer *t) {
    pmlp__text facts = pmlp__facts(t, "connect");
    const pmlp_schedule *s = t->lowered;
    uint64_t lists = 0;
    int i;
    for (i = 0; s && i < s->workers; i++)
        lists = pmlp_hash(lists, s->lists[i].at,
                          (size_t)s->lists[i].count * sizeof *s->lists[i].at);
    pmlp__fact_digest(&facts, "schedule", lists);
    for (i = 0; s && t->cuts && i < s->stages - 1; i++)
        pmlp__fact(&facts, "cuts", "%d at %d, %d", i + 1, t->cuts[i].layer, t->cuts[i].column);
}

/* Says what it has been told to do; does it; says what came of it; reaches out to the others; and
   says whether that went well: all ranks get a trainer, or none does. */
static pmlp_result pmlp__trainer_begin(pmlp_trainer *t, pmlp_error *error) {
    int watched = t->desc.progress != NULL;
    pmlp_result result = PMLP_OK;
    if (t->group) {
        t->sheets = (pmlp__sheet *)pmlp__new(&t->desc.allocator, 1 + (size_t)t->group->ranks,
                                             sizeof *t->sheets);
        if (!t->sheets) return pmlp__no_memory(error, "what ranks say");
        pmlp__trainer_facts(t);
        result = pmlp__agree(t, PMLP_OK, &watched, error);
        t->is_watched = watched != 0;
    }
    if (result == PMLP_OK)
        result = t->desc.schedule == PMLP_SCHEDULE_AUTO && !t->desc.costs
                     ? pmlp__trainer_build_auto(t, error)
                     : pmlp__trainer_build(t, error);
    t->desc.costs = NULL; /* the caller's, for this call only */
    if (!t->group) return result == PMLP_OK ? pmlp__trainer_connect(t, error) : result;
    if (t->is_known || pmlp__load(&t->failed)) return result;
    pmlp__build_facts(t);
    result = pmlp__agree(t, result, NULL, error);
    if (result == PMLP_OK) result = pmlp__trainer_connect(t, error);
    else return result;
    if (result != PMLP_OK) return result;
    pmlp__facts(t, "begin");
    return pmlp__agree(t, PMLP_OK, NULL, error);
}

PMLP_API pmlp_result pmlp_trainer_create(pmlp_model *model, const pmlp_trainer_desc *desc,
                                         pmlp_trainer **trainer, pmlp_error *error) {
    pmlp_error why; /* complete on failure, and not the caller's on success */
    pmlp_group *group;
    pmlp_trainer *t = NULL;
    pmlp_result result;
    if (!trainer) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "trainer: is NULL");
    *trainer = NULL;
    if (!model) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "model: is NULL");
    if (!desc) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "desc: is NULL");
    group = desc->group;
    if (group && !pmlp__is_whole_group(group))
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT,
                          "group: was built for another version of pipemlp.h, lacks an entry, or "
                          "has no rank in 0 .. ranks - 1");
    pmlp__error_clear(&why);
    result = pmlp__validate_desc(model, desc, &why);
    if (result == PMLP_OK && model->trainer)
        result = pmlp__fail(&why, PMLP_ERROR_STATE, "model: has a trainer already");
    if (result == PMLP_OK && !(t = (pmlp_trainer *)pmlp__new(&desc->allocator, 1, sizeof *t)))
        result = pmlp__no_memory(&why, "a trainer");
    if (result == PMLP_OK) {
        t->desc = pmlp__trainer_defaults(desc);
        t->backend = t->desc.backend;
        t->edges = t->desc.edges;
        t->group = group;
        t->replica = group ? group->rank / (group->ranks / t->desc.replicas) : 0;
        t->share = (t->desc.batch + (size_t)t->desc.replicas - 1) / (size_t)t->desc.replicas;
        t->model = model;
        pmlp__store(&t->no_query, 1);
        pmlp__error_clear(&t->error);
        pmlp__error_clear(&t->failure);
        result = pmlp__trainer_begin(t, &why);
    }
    if (result != PMLP_OK) {
        pmlp__log(&desc->logger, PMLP_LOG_ERROR, "%s", why.text);
        if (group && !(t && (t->is_known || pmlp__load(&t->failed))))
            group->abort(group->context, why.text);
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
    pmlp__delete(allocator, s->version_at);
    pmlp__delete(allocator, s->version_of);
    pmlp__delete(allocator, s->own);
}

static void pmlp__worker_close(pmlp_trainer *t, pmlp__worker *w) {
    pmlp__delete(&t->desc.allocator, w->trace.spans);
    pmlp__delete(&t->desc.allocator, w->trace.counts);
    if (w->context) t->backend->close(w->context);
    if (w->has_mutex) pmlp__mutex_done(&w->mutex);
    if (w->has_cond) pmlp__cond_done(&w->cond);
}

/* Some floats that one rank has, for all. */
static pmlp_result pmlp__spread(pmlp_trainer *t, int from, float *data, size_t floats) {
    return data ? t->group->broadcast(t->group->context, from, data, floats * sizeof *data,
                                      t->desc.deadline)
                : PMLP_OK;
}

/* A stage's part of one of its layers' tensors, w and b being the whole. */
static pmlp_result pmlp__read_part(pmlp_trainer *t, const pmlp__stage *s, int l, pmlp_tensor tensor,
                                   float *w, float *b) {
    const int layer = s->first_layer + l;
    const size_t first = l == 0 ? s->first_column : 0;
    const size_t n_in = pmlp__n_in(t->model, layer);
    const size_t n_out = l == 0 ? s->columns : pmlp__n_out(t->model, layer);
    const int from = pmlp__rank_of(t, 0, s->worker);
    pmlp_result result = PMLP_OK;
    w = w ? w + first * n_in : NULL;
    b = b ? b + first : NULL;
    if (!pmlp__is_spread(t) || from == t->group->rank)
        result = t->backend->read(pmlp__context_of(t, s), s->handles[l], tensor, w, b);
    if (!pmlp__is_spread(t)) return result;
    if (result == PMLP_OK) result = pmlp__spread(t, from, w, n_out * n_in);
    if (result == PMLP_OK) result = pmlp__spread(t, from, b, n_out);
    return result == PMLP_OK ? result : pmlp__part(t, "sharing weights", result, NULL);
}

/* One of a layer's tensors from all stages that have some of it, into w [n_out][n_in] and b
   [n_out]; either may be NULL. All ranks get all of it. */
static pmlp_result pmlp__read_layer(pmlp_trainer *t, int layer, pmlp_tensor tensor, float *w,
                                    float *b) {
    pmlp_result result = PMLP_OK;
    int i;
    for (i = 0; result == PMLP_OK && i < t->schedule->stages; i++) {
        const pmlp__stage *s = &t->stages[i];
        const int l = layer - s->first_layer;
        if (l >= 0 && l < s->layers) result = pmlp__read_part(t, s, l, tensor, w, b);
    }
    return result;
}

/* The way back: from w [n_out][n_in] and b [n_out] into all stages that have some of the layer. */
static pmlp_result pmlp__write_layer(pmlp_trainer *t, int layer, pmlp_tensor tensor, const float *w,
                                     const float *b) {
    pmlp_result result = PMLP_OK;
    int i;
    for (i = 0; result == PMLP_OK && i < t->schedule->stages; i++) {
        pmlp__stage *s = &t->stages[i];
        const int l = layer - s->first_layer;
        const size_t first = l == 0 ? s->first_column : 0;
        if (!s->is_here || l < 0 || l >= s->layers) continue;
        result = t->backend->write(pmlp__context_of(t, s), s->handles[l], tensor,
                                   w + first * pmlp__n_in(t->model, layer), b + first);
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

/* What the model lacks of its weights, from all ranks, if nothing has failed. */
static void pmlp__write_back(pmlp_trainer *t) {
    if (!t->model->stale || pmlp__is_mixed(t)) return;
    if (pmlp__is_spread(t) &&
        pmlp__agree_on_reading(t, "destroy", -1, true, true, PMLP_OK) != PMLP_OK)
        return;
    if (pmlp__read_weights(t) == PMLP_OK) t->model->stale = false;
}

/* What the stages have is neither this nor that: the trainer does no more. */
static void pmlp__trainer_lose(pmlp_trainer *t, pmlp_result result) {
    pmlp__fail(&t->error, result, "writing what was loaded into the stages: %s",
               pmlp_result_text(result));
    pmlp__store(&t->updating, 1);
    pmlp__trainer_fail(t, &t->error);
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
        pmlp__write_back(t);
        if (t->model->stale)
            pmlp__log(&t->desc.logger, PMLP_LOG_ERROR, "the weights could not be read back");
        t->model->trainer = NULL;
    }
    for (i = 0; i < t->connected_count; i++)
        t->connected[i].table->disconnect(t->connected[i].handle);
    for (i = 0; t->stages && t->workers && i < t->schedule->stages; i++)
        pmlp__stage_destroy(t, &t->stages[i]);
    for (i = 0; t->workers && i < t->schedule->workers; i++) pmlp__worker_close(t, &t->workers[i]);
    pmlp_schedule_destroy(t->schedule);
    pmlp_schedule_destroy(t->lowered);
    pmlp_schedule_destroy(t->forward);
    pmlp_schedule_destroy(t->many);
    pmlp__delete(&allocator, t->cuts);
    pmlp__delete(&allocator, t->layer_costs);
    pmlp__delete(&allocator, t->stages);
    pmlp__delete(&allocator, t->workers);
    pmlp__delete(&allocator, t->connected);
    pmlp__delete(&allocator, t->row_loss);
    pmlp__delete(&allocator, t->row_hit);
    pmlp__delete(&allocator, t->squares);
    pmlp__delete(&allocator, t->squares_at);
    pmlp__delete(&allocator, t->idle);
    pmlp__delete(&allocator, t->busy);
    pmlp__delete(&allocator, t->sheets);
    pmlp__delete(&allocator, t->mail);
    pmlp__delete(&allocator, t->costs);
    pmlp__delete(&allocator, t->order);
    pmlp__delete(&allocator, t);
}

/* --- one pass of all workers over a batch ----------------------------------------------------- */

/* With threads or without, the same lists are run by the same loop; what differs is only who comes
   next. */

/* Each worker in turn until it has to wait. By the checker's proof somebody can always go on. */
static void pmlp__pass_without_threads(pmlp_trainer *t) {
    const int workers = t->end_worker - t->first_worker;
    int i, left = workers, still = 0;
    for (i = 0; left > 0; i = (i + 1) % workers) {
        pmlp__worker *w = &t->workers[t->first_worker + i];
        const int before = w->next;
        const double begin = pmlp__clock();
        pmlp_result result;
        if (w->list == NULL) continue;
        result = pmlp__advance(w);
        w->busy += pmlp__clock() - begin - w->blocked;
        w->blocked = w->blocked_since = 0.0;
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
    const int first = t->first_worker, end = t->end_worker;
    int i;
    pmlp__store(&t->done, 0);
    for (i = first + 1; i < end; i++) pmlp__give_task(&t->workers[i], pmlp__worker_pass, i);
    pmlp__worker_pass(t, first, NULL);
    pmlp__await_tasks(t, end - first - 1);
    for (i = first; i < end; i++) {
        const pmlp__worker *w = &t->workers[i];
        t->workers[i].busy += w->finished - w->begun - w->blocked;
    }
}

/* The oldest of the steps that are kept makes room for the next one. */
static void pmlp__trace_next(pmlp_trainer *t) {
    int i;
    for (i = t->first_worker; t->desc.trace > 0 && i < t->end_worker; i++) {
        pmlp__trace *trace = &t->workers[i].trace;
        if (t->traced > 0) trace->at = (trace->at + 1) % t->desc.trace;
        trace->counts[trace->at] = 0;
    }
    if (t->traced < t->desc.trace) t->traced++;
}

/* What the workers run for so many rows. The lists for several batches in a row are written when
   their number changes: for the last rows of an epoch, and back. */
static pmlp_result pmlp__pass_lists(pmlp_trainer *t, size_t rows, bool training,
                                    const pmlp_schedule **lists) {
    const int batches = (int)((rows + t->desc.batch - 1) / t->desc.batch);
    pmlp_result result = PMLP_OK;
    *lists = training ? t->lowered : t->forward;
    if (batches > 1) {
        result = pmlp__trainer_many(t, batches, &t->error);
        *lists = t->many;
    }
    return result;
}

/* All is as it was before the first action. */
static pmlp_result pmlp__pass_begin(pmlp_trainer *t, const pmlp_schedule *lists) {
    pmlp_result result = PMLP_OK;
    int i;
    t->bad = false;
    pmlp__store(&t->gathered, 0);
    pmlp__store(&t->gate, t->schedule->per_update ? 1 : 0); /* asynchronous updates do not wait */
    pmlp__store(&t->updating, 0);
    if (t->training) pmlp__trace_next(t);
    for (i = t->first_worker; i < t->end_worker; i++) pmlp__worker_begin(&t->workers[i], lists);
    for (i = 0; i < t->schedule->stages; i++) {
        pmlp__stage *s = &t->stages[i];
        if (!s->is_here) continue;
        s->w_begin = s->w_end = 0;
        s->adding = NULL;
        s->ahead = 0;
        memset(s->own, 0, (size_t)t->schedule->microbatches * sizeof(bool));
        s->updates_before = s->updates;
    }
    for (i = 0; result == PMLP_OK && i < t->connected_count; i++)
        result = t->connected[i].table->reset(t->connected[i].handle);
    return result;
}

/* What it did, told to all ranks. */
static pmlp_result pmlp__pass_end(pmlp_trainer *t, double begun) {
    const bool has_losses = t->stages[t->schedule->stages - 1].is_here;
    size_t i;
    int w;
    t->hits = 0;
    for (i = 0; has_losses && i < t->rows; i++) t->hits += t->row_hit[t->offset + i];
    for (w = t->first_worker; w < t->end_worker; w++) t->busy[w] = t->workers[w].busy;
    return t->group ? pmlp__share_results(t, pmlp__clock() - begun) : PMLP_OK;
}

/* Rows first .. first + rows - 1 of data (through index, if there is one), or this replica's share
   of them, trained on or evaluated, in a call that has begun at that time. */
static pmlp_result pmlp__pass(pmlp_trainer *t, const pmlp_data *data, const uint32_t *index,
                              size_t first, size_t rows, bool training, double begun) {
    const pmlp_schedule *lists;
    pmlp_result result = pmlp__pass_lists(t, rows, training, &lists);
    if (result != PMLP_OK) {
        if (t->group) pmlp__trainer_fail(t, &t->error); /* they have begun */
        return result;
    }
    t->offset = pmlp__share_begin(t, rows, t->replica);
    t->rows = pmlp__share_begin(t, rows, t->replica + 1) - t->offset;
    t->whole = rows;
    t->data = data;
    t->index = index ? index + first + t->offset : NULL;
    t->first = first + t->offset;
    t->training = training;
    result = pmlp__pass_begin(t, lists);
    if (result != PMLP_OK) {
        pmlp_error why;
        pmlp__fail(&why, result, "an edge could not be reset: %s", pmlp_result_text(result));
        pmlp__trainer_fail(t, &why);
    } else if (t->desc.no_threads) {
        pmlp__pass_without_threads(t);
    } else {
        pmlp__pass_with_threads(t);
    }
    if (!pmlp__load(&t->failed)) pmlp__pass_end(t, begun);
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

/* Sums that grow over the passes of one call, or of the calls that make an epoch. */
typedef struct pmlp__tally {
    double loss, begun;
    size_t rows, total_rows, hits;
    size_t rows_before; /* this call */
    size_t skipped, left_out; /* steps that changed nothing, and their rows */
    bool has_labels;
} pmlp__tally;

static pmlp__tally pmlp__tally_begin(pmlp_trainer *t, const pmlp_data *data) {
    pmlp__tally tally;
    int i;
    memset(&tally, 0, sizeof tally);
    tally.begun = pmlp__clock();
    tally.total_rows = data->rows;
    tally.has_labels = data->labels != NULL;
    for (i = t->first_worker; i < t->end_worker; i++) t->workers[i].busy = 0.0;
    return tally;
}

/* Losses in the order of the samples, in double. */
static void pmlp__tally_add(pmlp__tally *tally, const pmlp_trainer *t) {
    size_t i;
    tally->rows += t->whole;
    if (t->bad) {
        tally->skipped++;
        tally->left_out += t->whole;
        return;
    }
    for (i = 0; i < t->whole; i++) tally->loss += t->row_loss[i];
    tally->hits += t->hits;
}

/* Where an epoch is when this call begins; nowhere, mostly. */
static void pmlp__tally_resume(pmlp__tally *tally, const pmlp_trainer *t) {
    tally->loss = t->epoch_loss;
    tally->rows = tally->rows_before = (size_t)t->epoch_rows;
    tally->hits = (size_t)t->epoch_hits;
}

/* And where it is when the pipeline is empty. */
static void pmlp__tally_keep(const pmlp__tally *tally, pmlp_trainer *t) {
    t->epoch_loss = tally->loss;
    t->epoch_rows = tally->rows;
    t->epoch_hits = tally->hits;
    t->epoch_total = tally->total_rows;
}

static void pmlp__no_epoch(pmlp_trainer *t) {
    t->epoch_total = t->epoch_rows = t->epoch_hits = 0;
    t->epoch_loss = 0.0;
}

static void pmlp__tally_stats(const pmlp__tally *tally, pmlp_trainer *t, pmlp_stats *stats) {
    const double seconds = t->group ? t->seconds : pmlp__clock() - tally->begun;
    const size_t counted = tally->rows - tally->left_out;
    int i;
    for (i = 0; i < t->schedule->workers; i++) {
        const double idle = seconds > 0.0 ? 1.0 - t->busy[i] / seconds : 0.0;
        t->idle[i] = idle < 0.0 ? 0.0 : idle;
    }
    memset(stats, 0, sizeof *stats);
    stats->step = t->step;
    stats->epoch = t->epoch;
    stats->steps = (tally->rows + t->desc.batch - 1) / t->desc.batch;
    stats->rows = tally->rows;
    stats->total_rows = tally->total_rows;
    stats->loss = counted ? tally->loss / (double)counted : 0.0;
    stats->accuracy = !tally->has_labels ? -1.0
                      : counted          ? (double)tally->hits / (double)counted
                                         : 0.0;
    stats->skipped = tally->skipped;
    stats->seconds = seconds;
    stats->samples_per_second =
        seconds > 0.0 ? (double)(tally->rows - tally->rows_before) / seconds : 0.0;
    stats->gradient_norm = t->gradient_norm;
    stats->workers = t->schedule->workers;
    stats->idle = t->idle;
}

/* --- bad numbers ------------------------------------------------------------------------------ */

static size_t pmlp__bad_float(const float *numbers, size_t count) {
    size_t i;
    for (i = 0; i < count && numbers[i] - numbers[i] == 0.0f; i++) continue;
    return i;
}

/* Whether these hold a bad number, which is then named; layer -1: they are of none. */
static bool pmlp__name_bad(pmlp__text *text, const char *what, int layer, const float *numbers,
                           size_t count) {
    const size_t at = pmlp__bad_float(numbers, count);
    if (at == count) return false;
    pmlp__put(text, "%s %.0f", what, (double)at);
    if (layer >= 0) pmlp__put(text, " of layer %d", layer);
    pmlp__put(text, " is %g", (double)numbers[at]);
    return true;
}

/* The first layer whose weights or outputs for one row are bad, by computing them anew; w has room
   for the weights of any layer, `rows` for five times its outputs. Every rank does this alike. */
static bool pmlp__name_bad_layer(pmlp_trainer *t, const float *x, float *w, float *rows,
                                 size_t widest, pmlp__text *text) {
    const float *in = x;
    float *out = rows, *b = rows + 4 * widest;
    size_t o, i;
    int l;
    for (l = 0; l < t->model->desc.layers; l++) {
        const size_t n_in = pmlp__n_in(t->model, l), n_out = pmlp__n_out(t->model, l);
        if (pmlp__read_layer(t, l, PMLP_TENSOR_PARAMS, w, b) != PMLP_OK) return false;
        if (pmlp__name_bad(text, "weight", l, w, n_in * n_out) ||
            pmlp__name_bad(text, "bias", l, b, n_out))
            return true;
        for (o = 0; o < n_out; o++) {
            double z = 0.0;
            for (i = 0; i < n_in; i++) z += (double)in[i] * (double)w[o * n_in + i];
            out[o] = (float)z;
        }
        pmlp__activate_generic(t->model->activations[l], 1, n_out, b, out, n_out, widest);
        if (pmlp__name_bad(text, "output", l, out, n_out)) return true;
        in = out;
        out = out == rows ? rows + 2 * widest : rows;
    }
    return false;
}

/* Room for the above. */
static float *pmlp__layer_scratch(const pmlp_trainer *t, size_t *largest, size_t *widest) {
    int l;
    *largest = *widest = 1;
    for (l = 0; l < t->model->desc.layers; l++) {
        const size_t n = pmlp__n_in(t->model, l) * pmlp__n_out(t->model, l);
        if (n > *largest) *largest = n;
        if (pmlp__n_out(t->model, l) > *widest) *widest = pmlp__n_out(t->model, l);
    }
    return (float *)pmlp__new(&t->desc.allocator, *largest + 5 * *widest, sizeof(float));
}

/* What is bad in a row of the data or in what the layers make of it. */
static void pmlp__name_bad_row(pmlp_trainer *t, size_t row, pmlp__text *text) {
    const size_t first = t->first - t->offset;
    const size_t at = t->index ? (t->index - t->offset)[row] : first + row;
    const size_t n_in = pmlp__n_in(t->model, 0);
    const size_t n_out = pmlp__n_out(t->model, t->model->desc.layers - 1);
    const float *x = t->data->x + at * n_in;
    size_t largest, widest;
    float *scratch = NULL;
    pmlp_error unused;
    pmlp_result result = PMLP_OK;
    pmlp__put(text, "row %.0f of the data: ", (double)at);
    if (pmlp__name_bad(text, "input", -1, x, n_in)) return;
    if (t->data->targets &&
        pmlp__name_bad(text, "target", -1, t->data->targets + at * n_out, n_out))
        return;
    scratch = pmlp__layer_scratch(t, &largest, &widest);
    if (!scratch) result = pmlp__no_memory(&unused, "a layer");
    if (t->group) pmlp__facts(t, "looking for a bad number");
    if (pmlp__agree(t, result, NULL, &unused) != PMLP_OK ||
        !pmlp__name_bad_layer(t, x, scratch, scratch + largest, widest, text))
        pmlp__put(text, "the loss is %g", t->row_loss[row]);
    pmlp__delete(&t->desc.allocator, scratch);
}

/* The output of which layer has a bad gradient. */
static void pmlp__name_bad_gradient(const pmlp_trainer *t, pmlp__text *text) {
    int l;
    for (l = 0; l < t->model->desc.layers; l++) {
        const size_t n = pmlp__n_out(t->model, l);
        const size_t at = pmlp__bad_one(t->squares + t->squares_at[l], n);
        if (at == n) continue;
        pmlp__put(text, "the gradient of output %.0f of layer %d is not finite", (double)at, l);
        return;
    }
    pmlp__put(text, "the norm of the gradient is %g", t->gradient_norm);
}

/* Says why a step with bad numbers was none, or, if they were found too late, is one too many. */
static pmlp_result pmlp__bad_number(pmlp_trainer *t) {
    const size_t row = pmlp__bad_one(t->row_loss, t->whole);
    char buffer[320];
    pmlp__text text;
    text.buffer = buffer;
    text.size = sizeof buffer;
    text.length = 0;
    buffer[0] = '\0';
    if (row < t->whole) pmlp__name_bad_row(t, row, &text);
    else pmlp__name_bad_gradient(t, &text);
    return pmlp__fail(&t->error, PMLP_ERROR_NUMBER, "step %.0f: %s; %s",
                      (double)t->step + (t->bad ? 1.0 : 0.0), buffer,
                      t->bad ? "the weights are those before it"
                             : "the weights have been updated with it");
}

static pmlp_result pmlp__train_batch(pmlp_trainer *t, const pmlp_data *data, const uint32_t *index,
                                     size_t first, size_t rows, double begun) {
    pmlp_result result;
    t->model->stale = true;
    result = pmlp__pass(t, data, index, first, rows, true, begun);
    if (result != PMLP_OK) return result;
    if (!t->bad) {
        t->step += (rows + t->desc.batch - 1) / t->desc.batch;
        t->has_gradient = true;
        if (pmlp__bad_one(t->row_loss, rows) == rows) return PMLP_OK;
    } else if (t->desc.bad_numbers == PMLP_BAD_NUMBERS_SKIP) {
        return PMLP_OK;
    }
    return pmlp__bad_number(t);
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
    result = pmlp__agree_on_call(t, "step", batch, result);
    if (result != PMLP_OK) return pmlp__leave(t, result);
    tally = pmlp__tally_begin(t, batch);
    result = pmlp__train_batch(t, batch, NULL, 0, batch->rows, tally.begun);
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

/* Asks the progress callback, which may call back in, one call at a time, and, if any rank has one,
   what those of the other ranks say. */
static pmlp_result pmlp__report(pmlp_trainer *t, const pmlp__tally *tally, pmlp_stats *stats) {
    int stopped = 0;
    pmlp_result result = PMLP_OK;
    if (t->desc.progress) {
        pmlp__tally_stats(tally, t, stats);
        pmlp__store(&t->no_query, 0);
        stopped = !t->desc.progress(stats, t->desc.progress_user);
        while (pmlp__exchange(&t->no_query, 1)) pmlp__pause(); /* a query of another thread */
    }
    if (t->is_watched) {
        pmlp__text facts = pmlp__facts(t, "epoch, behind the progress callback");
        pmlp__fact(&facts, "learning_rate", "%.9g", (double)t->desc.learning_rate);
        result = pmlp__agree(t, PMLP_OK, &stopped, &t->error);
        if (result != PMLP_OK) return result;
    }
    if (stopped)
        result = pmlp__fail(&t->error, PMLP_ERROR_CANCELLED,
                            "the progress callback stopped the epoch after %.0f of %.0f rows",
                            (double)tally->rows, (double)tally->total_rows);
    return result;
}

/* The batches of an epoch. */
static pmlp_result pmlp__epoch_batches(pmlp_trainer *t, const pmlp_data *data, pmlp__tally *tally,
                                       pmlp_stats *stats) {
    const uint32_t *order = t->desc.no_shuffle ? NULL : t->order;
    const size_t most = (size_t)t->pass_batches * t->desc.batch;
    while (tally->rows < data->rows) {
        const size_t left = data->rows - tally->rows;
        pmlp_result result = pmlp__train_batch(t, data, order, tally->rows,
                                               left < most ? left : most, tally->begun);
        if (result != PMLP_OK) return result;
        pmlp__tally_add(tally, t);
        pmlp__tally_keep(tally, t);
        result = pmlp__report(t, tally, stats);
        if (result != PMLP_OK) return result;
    }
    t->epoch++;
    pmlp__no_epoch(t);
    return PMLP_OK;
}

PMLP_API pmlp_result pmlp_trainer_epoch(pmlp_trainer *t, const pmlp_data *data, pmlp_stats *stats) {
    pmlp_stats unused;
    pmlp__tally tally;
    pmlp_result result = pmlp__enter(t);
    if (result != PMLP_OK) return result;
    if (!stats) stats = &unused;
    result = pmlp__validate_data(t->model, data, &t->error);
    if (result == PMLP_OK && t->epoch_rows > 0 && t->epoch_total != data->rows)
        result = pmlp__fail(&t->error, PMLP_ERROR_SHAPE,
                            "data: has %.0f rows, but the epoch that was interrupted after %.0f "
                            "rows began with %.0f", (double)data->rows, (double)t->epoch_rows,
                            (double)t->epoch_total);
    if (result == PMLP_OK) result = pmlp__epoch_order(t, data->rows);
    result = pmlp__agree_on_call(t, "epoch", data, result);
    if (result != PMLP_OK) return pmlp__leave(t, result);
    tally = pmlp__tally_begin(t, data);
    pmlp__tally_resume(&tally, t);
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
    result = pmlp__agree_on_call(t, "eval", data, result);
    if (result != PMLP_OK) return pmlp__leave(t, result);
    tally = pmlp__tally_begin(t, data);
    for (first = 0; result == PMLP_OK && first < data->rows; first += rows) {
        rows = data->rows - first < t->desc.batch ? data->rows - first : t->desc.batch;
        result = pmlp__pass(t, data, NULL, first, rows, false, tally.begun);
        if (result == PMLP_OK) pmlp__tally_add(&tally, t);
    }
    if (result == PMLP_OK) {
        if (!stats) stats = &unused;
        pmlp__tally_stats(&tally, t, stats);
        stats->steps = 0;
    }
    return pmlp__leave(t, result);
}

PMLP_API pmlp_result pmlp_trainer_restart_epoch(pmlp_trainer *t) {
    const pmlp_result result = pmlp__enter(t);
    if (result != PMLP_OK) return result;
    pmlp__no_epoch(t);
    return pmlp__leave(t, PMLP_OK);
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

static pmlp_result pmlp__read_failed(pmlp_trainer *t, const char *what, pmlp_result result) {
    return pmlp__fail(&t->error, result, "reading %s: %.400s", what,
                      pmlp__load(&t->failed) ? t->failure.text : pmlp_result_text(result));
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
    result = pmlp__agree_on_reading(t, "sync", -1, true, true, PMLP_OK);
    if (result != PMLP_OK) return pmlp__leave_query(entered, result);
    result = pmlp__read_weights(t);
    if (result == PMLP_OK) t->model->stale = false;
    else pmlp__read_failed(t, "the weights back", result);
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

/* Whether there is a gradient to be had. */
static pmlp_result pmlp__check_gradient(pmlp_trainer *t, int layer) {
    if (layer < 0 || layer >= t->model->desc.layers)
        return pmlp__fail(&t->error, PMLP_ERROR_ARGUMENT, "layer: %d is not in 0 .. %d", layer,
                          t->model->desc.layers - 1);
    if (!t->has_gradient || pmlp__load(&t->failed))
        return pmlp__fail(&t->error, PMLP_ERROR_STATE, "there is no gradient %s",
                          t->has_gradient ? "of a step that failed" : "before the first step");
    if (!t->desc.keep_gradients)
        return pmlp__fail(&t->error, PMLP_ERROR_STATE,
                          "gradients are not kept: set desc.keep_gradients");
    return PMLP_OK;
}

PMLP_API pmlp_result pmlp_trainer_gradient(pmlp_trainer *t, int layer, float *dw, float *db) {
    pmlp_result result;
    pmlp__atomic *const entered = pmlp__enter_query(t);
    if (!entered) return t ? PMLP_ERROR_STATE : PMLP_ERROR_ARGUMENT;
    result = pmlp__agree_on_reading(t, "gradient", layer, dw != NULL, db != NULL,
                                    pmlp__check_gradient(t, layer));
    if (result != PMLP_OK) return pmlp__leave_query(entered, result);
    result = pmlp__read_layer(t, layer, PMLP_TENSOR_GRADIENTS, dw, db);
    if (result != PMLP_OK) pmlp__read_failed(t, "the gradient", result);
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

PMLP_API pmlp_result pmlp_trainer_position(pmlp_trainer *t, pmlp_position *position) {
    pmlp__atomic *const entered = pmlp__enter_query(t);
    if (!entered) return t ? PMLP_ERROR_STATE : PMLP_ERROR_ARGUMENT;
    if (!position)
        return pmlp__leave_query(entered, pmlp__fail(&t->error, PMLP_ERROR_ARGUMENT,
                                                     "position: is NULL"));
    position->step = t->step;
    position->epoch = t->epoch;
    position->rows = (size_t)t->epoch_rows;
    position->total_rows = (size_t)t->epoch_total;
    return pmlp__leave_query(entered, PMLP_OK);
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
        const double output = pmlp__output_cost(t->model, t->layer_costs, l);
        total += output * (double)pmlp__n_out(t->model, l);
        if (l >= s->first_layer && l < s->first_layer + s->layers)
            own += output * (double)(l == s->first_layer ? s->columns : pmlp__n_out(t->model, l));
    }
    info->cost = own / total;
    info->versions = s->versions;
    info->staleness = s->gradients ? (double)s->stale / (double)s->gradients : 0.0;
    info->most_stale = (int)s->most_stale;
    info->torn = s->gradients ? (double)s->torn / (double)s->gradients : 0.0;
    return PMLP_OK;
}

/* --- what was traced -------------------------------------------------------------------------- */

/* The spans of a worker in the step that lies `back` steps behind the last one. */
static const pmlp_span *pmlp__traced(const pmlp_trainer *t, int worker, int back, int *count) {
    const pmlp__trace *trace = &t->workers[worker].trace;
    const int at = (trace->at - back + t->desc.trace) % t->desc.trace;
    *count = trace->counts ? trace->counts[at] : 0;
    return *count == 0 ? NULL : trace->spans + (size_t)at * (size_t)trace->capacity;
}

static double pmlp__step_begin(const pmlp_trainer *t, int back, double *end) {
    double begin = HUGE_VAL;
    int worker, count;
    *end = 0.0;
    for (worker = 0; worker < t->schedule->workers; worker++) {
        const pmlp_span *spans = pmlp__traced(t, worker, back, &count);
        if (count > 0 && spans[0].begin < begin) begin = spans[0].begin;
        if (count > 0 && spans[count - 1].end > *end) *end = spans[count - 1].end;
    }
    return begin;
}

/* Which of the kept steps has the median length. lengths [2 traced]. */
static int pmlp__median_step(const pmlp_trainer *t, double *lengths) {
    double median, end;
    int back;
    for (back = 0; back < t->traced; back++) {
        const double begin = pmlp__step_begin(t, back, &end);
        lengths[back] = lengths[t->traced + back] = end - begin;
    }
    median = pmlp__median(lengths + t->traced, t->traced);
    for (back = 0; back < t->traced - 1 && lengths[back] != median; back++) continue;
    return back;
}

/* What a stage keeps of a micro-batch: its share of x and dz, in bytes. */
static double pmlp__stage_bytes(const pmlp_trainer *t, const pmlp__stage *s) {
    const double rows = (double)t->share / (double)t->schedule->microbatches;
    double floats = 0.0;
    int l;
    for (l = 0; s->is_here && l <= s->layers; l++)
        floats += (double)s->row[l] * (l == 0 && pmlp__reads_input(s) ? 1.0 : 2.0);
    return rows * floats * (double)sizeof(float);
}

/* Steps `first` back down to `last` back as one timeline, the earliest begin being 0. */
static pmlp_timeline *pmlp__timeline_of(const pmlp_trainer *t, int first, int last) {
    pmlp_timeline *out = pmlp__timeline_new(t->schedule, &t->desc.allocator, NULL);
    double end;
    const double begin = pmlp__step_begin(t, first, &end);
    int worker, back, count, total, i;
    for (i = 0; out && i < t->schedule->stages; i++)
        out->held[i] = pmlp__stage_bytes(t, &t->stages[i]);
    for (worker = 0; out && worker < t->schedule->workers; worker++) {
        for (total = 0, back = first; back >= last; back--) {
            pmlp__traced(t, worker, back, &count);
            total += count;
        }
        if (!pmlp__timeline_reserve(out, worker, total)) {
            pmlp_timeline_destroy(out);
            return NULL;
        }
        for (back = first; back >= last; back--) {
            const pmlp_span *spans = pmlp__traced(t, worker, back, &count);
            for (i = 0; i < count; i++) {
                pmlp_span span = spans[i];
                if (span.microbatch + span.count > out->microbatches)
                    out->microbatches = span.microbatch + span.count;
                span.begin -= begin;
                span.end -= begin;
                pmlp__timeline_add(out, worker, &span);
            }
        }
    }
    return out;
}

static pmlp_result pmlp__check_traced(pmlp_trainer *t) {
    if (t->desc.trace == 0)
        return pmlp__fail(&t->error, PMLP_ERROR_STATE, "nothing is traced: desc.trace is 0");
    if (pmlp__load(&t->failed))
        return pmlp__fail(&t->error, PMLP_ERROR_STATE, "the trainer has failed: %.200s",
                          t->failure.text);
    if (t->traced == 0)
        return pmlp__fail(&t->error, PMLP_ERROR_STATE, "no step has been traced");
    return PMLP_OK;
}

PMLP_API pmlp_result pmlp_trainer_timeline(pmlp_trainer *t, int steps, pmlp_timeline **timeline) {
    pmlp_result result;
    pmlp__atomic *entered;
    if (timeline) *timeline = NULL;
    entered = pmlp__enter_query(t);
    if (!entered) return t ? PMLP_ERROR_STATE : PMLP_ERROR_ARGUMENT;
    result = pmlp__check_traced(t);
    if (!timeline || steps < 0)
        result = pmlp__fail(&t->error, PMLP_ERROR_ARGUMENT, "%s",
                            timeline ? "steps: is negative" : "timeline: is NULL");
    if (result == PMLP_OK) {
        double *lengths =
            (double *)pmlp__new(&t->desc.allocator, 2 * (size_t)t->traced, sizeof *lengths);
        const int first = steps > 0   ? pmlp__least(steps, t->traced) - 1
                          : lengths ? pmlp__median_step(t, lengths)
                                    : 0;
        if (lengths) *timeline = pmlp__timeline_of(t, first, steps > 0 ? 0 : first);
        pmlp__delete(&t->desc.allocator, lengths);
        if (!*timeline) result = pmlp__no_memory(&t->error, "a timeline");
    }
    return pmlp__leave_query(entered, result);
}

/* What was done ahead of the F that is the span number `at`, in seconds. */
static double pmlp__seconds_ahead(const pmlp_timeline *all, int worker, int at) {
    const pmlp_span *f = &all->spans[worker][at];
    int i;
    for (i = at - 1; i >= 0; i--) {
        const pmlp_span *span = &all->spans[worker][i];
        if (span->op != PMLP_OP_F || span->stage != f->stage || span->microbatch != f->microbatch)
            continue;
        return span->ahead ? span->end - span->begin : 0.0; /* else it is the last step's */
    }
    return 0.0;
}

/* Median time that one micro-batch of a stage takes in an op, over all kept steps; of F with what
   was done ahead, or that alone. */
static double pmlp__median_cost(const pmlp_timeline *all, int worker, int stage, pmlp_op op,
                                bool ahead, double *values) {
    int count = 0, i;
    for (i = 0; i < all->counts[worker]; i++) {
        const pmlp_span *span = &all->spans[worker][i];
        if (span->stage != stage || span->op != op || span->ahead != ahead) continue;
        values[count] = (span->end - span->begin) / span->count;
        if (op == PMLP_OP_F && !ahead) values[count] += pmlp__seconds_ahead(all, worker, i);
        count++;
    }
    return pmlp__median(values, count);
}

/* Median time from the end of a producer to the begin of a consumer that was waiting for it. */
static double pmlp__median_latency(const pmlp_timeline *all, double *values) {
    int count = 0, worker, i;
    for (worker = 0; worker < all->workers; worker++)
        for (i = 1; i < all->counts[worker]; i++) {
            const pmlp_span *span = &all->spans[worker][i];
            const pmlp_span *needed = pmlp__needed(all, worker, span);
            if (needed && needed->end > all->spans[worker][i - 1].end && needed->end <= span->begin)
                values[count++] = span->begin - needed->end;
        }
    return pmlp__median(values, count);
}

static void pmlp__fill_costs(pmlp_trainer *t, const pmlp_timeline *all, double *values,
                             pmlp_costs *costs) {
    static const pmlp_op ops[] = {PMLP_OP_F, PMLP_OP_I, PMLP_OP_W, PMLP_OP_U};
    const int stages = t->schedule->stages;
    const double rows = (double)t->share / (double)t->schedule->microbatches;
    int i, n;
    for (i = 0; i < stages; i++) {
        const pmlp__stage *s = &t->stages[i];
        if (!s->is_here) continue;
        for (n = 0; n < 4; n++)
            t->costs[n * stages + i] = pmlp__median_cost(all, s->worker, i, ops[n], false, values);
        t->costs[6 * stages + i] = pmlp__median_cost(all, s->worker, i, PMLP_OP_F, true, values);
        if (t->costs[6 * stages + i] > t->costs[i]) t->costs[6 * stages + i] = t->costs[i];
        t->costs[4 * stages + i] = rows * (double)s->row[s->layers] * (double)sizeof(float);
        t->costs[5 * stages + i] = pmlp__stage_bytes(t, s);
    }
    t->costs[7 * stages] = pmlp__median_latency(all, values);
    *costs = pmlp__costs_in(t->costs, stages);
}

PMLP_API pmlp_result pmlp_trainer_costs(pmlp_trainer *t, pmlp_costs *costs) {
    pmlp_timeline *all = NULL;
    double *values = NULL;
    pmlp_result result;
    int worker;
    size_t spans = 0;
    pmlp__atomic *entered = pmlp__enter_query(t);
    if (costs) memset(costs, 0, sizeof *costs);
    if (!entered) return t ? PMLP_ERROR_STATE : PMLP_ERROR_ARGUMENT;
    result = pmlp__check_traced(t);
    if (!costs) result = pmlp__fail(&t->error, PMLP_ERROR_ARGUMENT, "costs: is NULL");
    if (result == PMLP_OK) {
        all = pmlp__timeline_of(t, t->traced - 1, 0);
        for (worker = 0; all && worker < all->workers; worker++)
            spans += (size_t)all->counts[worker];
        values = (double *)pmlp__new(&t->desc.allocator, spans, sizeof *values);
        if (all && values) pmlp__fill_costs(t, all, values, costs);
        else result = pmlp__no_memory(&t->error, "costs");
    }
    pmlp_timeline_destroy(all);
    pmlp__delete(&t->desc.allocator, values);
    return pmlp__leave_query(entered, result);
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
    report->at_step = report->steps;
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
    if (pipeline->trainer->schedule->per_update == 0 &&
        memcmp(&ps->gradient_norm, &ss->gradient_norm, sizeof ps->gradient_norm) != 0)
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

/* The report in words. */
static void pmlp__verify_text(const pmlp_trainer *t, pmlp_verify_report *report) {
    pmlp__text text;
    int i;
    text.buffer = report->text;
    text.size = sizeof report->text;
    text.length = 0;
    if (report->identical) {
        pmlp__put(&text, "every bit equal after %d steps", report->steps);
    } else {
        pmlp__put(&text, "step %d: %s", report->at_step, report->what);
        if (report->layer >= 0)
            pmlp__put(&text, " [%.0f][%.0f] of layer %d", (double)report->row,
                      (double)report->column, report->layer);
        pmlp__put(&text, " is %.9g, serially ", report->pipeline);
        pmlp__put(&text, "%.9g", report->serial);
    }
    for (i = 0; i < t->schedule->stages && t->schedule->per_update; i++) {
        pmlp_stage_info info;
        pmlp_trainer_stage(t, i, &info);
        if (info.staleness > report->staleness) report->staleness = info.staleness;
        pmlp__put(&text, "%s stage %d %.2f", i ? "," : "; staleness in updates, measured:", i,
                  info.staleness);
        pmlp__put(&text, " (at most %d)", info.most_stale);
    }
    pmlp__text_end(&text, NULL);
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
    d.workers = d.virtual_stages = d.microbatches = 1;
    if (result == PMLP_OK && !pipeline.trainer->backend->exact)
        d.microbatches = pipeline.trainer->schedule->microbatches;
    d.schedule = PMLP_SCHEDULE_SEQUENTIAL;
    d.custom = NULL;
    d.trace = 0;
    d.cuts = NULL;
    d.edges = NULL;
    d.slots = 0;
    d.no_threads = true;
    d.group = NULL;
    d.replicas = 1;
    if (result == PMLP_OK) result = pmlp__run_begin(&serial, model, &d, error);
    report->identical = result == PMLP_OK;
    while (result == PMLP_OK && report->steps < steps &&
           (report->identical || pipeline.trainer->schedule->per_update)) {
        const size_t size = pmlp_trainer_query_desc(serial.trainer).batch;
        const pmlp_data batch = pmlp__next_batch(model, data, size, &first);
        result = pmlp__run_step(&pipeline, &batch, error);
        if (result == PMLP_OK) result = pmlp__run_step(&serial, &batch, error);
        if (result == PMLP_OK) {
            report->steps++;
            if (report->identical) pmlp__compare(&pipeline, &serial, report);
        }
    }
    if (result == PMLP_OK) result = pmlp_model_hash(pipeline.model, &report->hash, error);
    else report->identical = false;
    if (result == PMLP_OK) pmlp__verify_text(pipeline.trainer, report);
    pmlp__run_end(&pipeline);
    pmlp__run_end(&serial);
    return result;
}

/*============================================================================================*/
/* >>ceiling                                                                                  */
/*============================================================================================*/

/* Everything here is a quotient of all work by the time that some schedule takes. */
typedef struct pmlp__bounds {
    const pmlp_model *model;
    pmlp_trainer_desc d;
    pmlp_schedule *schedule;
    int stages;
    pmlp_cut *cuts;
    double *layer_costs;
    bool shared; /* the edges hand over pointers */
    bool given;  /* costs of the caller's, which the cut does not go by */
    double *counted; /* [4][stages]: F, I, W, F ahead in multiply-adds per row */
    double *even;    /* [stages]: the share of F that is done ahead */
    pmlp_costs costs;
} pmlp__bounds;

/* Multiply-adds of a stage: column by column of the layers that it has. */
static void pmlp__count_costs(pmlp__bounds *b) {
    const pmlp_model *model = b->model;
    const int stages = b->stages;
    const pmlp_cut top = {model->desc.layers, 0}, bottom = {0, 0};
    int s, l;
    for (s = 0; s < stages; s++) {
        const pmlp_cut begin = s > 0 ? b->cuts[s - 1] : bottom;
        const pmlp_cut end = s < stages - 1 ? b->cuts[s] : top;
        for (l = begin.layer; l < model->desc.layers; l++) {
            const double n_in = (double)pmlp__n_in(model, l);
            const double from = l == begin.layer ? (double)begin.column : 0.0;
            const double to = l < end.layer    ? (double)pmlp__n_out(model, l)
                              : l == end.layer ? (double)end.column
                                               : 0.0;
            if (to <= from) continue;
            b->counted[s] += n_in * (to - from);
            b->counted[stages + s] += l == 0 ? 0.0 : n_in * (to - from);
            b->counted[2 * stages + s] += n_in * (to - from);
            if (l == 0 && from > 0.0 && b->shared) b->counted[3 * stages + s] += n_in * (to - from);
        }
    }
    b->costs.f = b->counted;
    b->costs.i = b->counted + stages;
    b->costs.w = b->counted + 2 * stages;
    b->costs.ahead = b->counted + 3 * stages;
}

static double pmlp__stage_work(const pmlp_costs *c, int stage) {
    return pmlp__cost(c->f, stage, 1.0) + pmlp__cost(c->i, stage, 1.0) +
           pmlp__cost(c->w, stage, 1.0);
}

/* Work of all workers for one micro-batch, and of the busiest. */
static double pmlp__all_work(const pmlp_schedule *s, const pmlp_costs *c, double *busiest,
                             int *whose) {
    double all = 0.0;
    int worker, stage;
    *busiest = 0.0;
    *whose = 0;
    for (worker = 0; worker < s->workers; worker++) {
        double own = 0.0;
        for (stage = 0; stage < s->stages; stage++)
            if (s->stage_worker[stage] == worker) own += pmlp__stage_work(c, stage);
        all += own;
        if (own > *busiest) {
            *busiest = own;
            *whose = worker;
        }
    }
    return all;
}

/* All work by the makespan of a schedule, run as the trainer does it. */
static pmlp_result pmlp__speedup(const pmlp_trainer_desc *d, const pmlp_schedule *s,
                                 const pmlp_costs *costs, double *speedup, pmlp_error *error) {
    const double rows = (double)d->batch / (double)d->microbatches;
    const double most = ceil((double)d->w_rows / rows), all = (double)s->microbatches;
    pmlp_schedule *run = NULL;
    pmlp_simulation sim;
    double busiest;
    int whose;
    pmlp_result result =
        pmlp_schedule_put_off(s, costs, most < all ? (int)most : s->microbatches, &run, error);
    *speedup = 0.0;
    if (result == PMLP_OK) result = pmlp_schedule_simulate(run, costs, NULL, &sim, error);
    if (result == PMLP_OK && sim.makespan > 0.0)
        *speedup = pmlp__all_work(s, costs, &busiest, &whose) * all / sim.makespan;
    pmlp_schedule_destroy(run);
    return result;
}

/* The cut, what its stages cost, and then the schedule: auto goes by these costs. */
static pmlp_result pmlp__bounds_begin(pmlp__bounds *b, const pmlp_costs *costs,
                                      pmlp_error *error) {
    const pmlp_allocator *allocator = &b->model->desc.allocator;
    const bool async = !b->d.custom && pmlp__is_asynchronous(b->d.schedule);
    const int n = b->d.custom ? b->d.custom->stages : b->d.workers * b->d.virtual_stages;
    const size_t stages = (size_t)n;
    pmlp_result result = PMLP_OK;
    b->stages = n;
    if (costs && pmlp__bad_costs(n, costs))
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT,
                          "costs: are not numbers in 0 .. 1e100 for each of the %d stages", n);
    b->cuts = (pmlp_cut *)pmlp__new(allocator, stages, sizeof *b->cuts);
    b->counted = (double *)pmlp__new(allocator, 4 * stages, sizeof *b->counted);
    b->even = (double *)pmlp__new(allocator, stages, sizeof *b->even);
    if (!b->cuts || !b->counted || !b->even) return pmlp__no_memory(error, "bounds");
    b->layer_costs =
        (double *)pmlp__new(allocator, (size_t)b->model->desc.layers, sizeof *b->layer_costs);
    if (!b->layer_costs) return pmlp__no_memory(error, "bounds");
    result = pmlp__choose_cuts(b->model, &b->d, n, b->layer_costs, b->cuts, error);
    if (result != PMLP_OK) return result;
    pmlp__count_costs(b);
    if (costs) b->costs = *costs;
    b->costs.u = NULL;
    if (!b->d.costs) b->d.costs = &b->costs;
    return pmlp__trainer_schedule(&b->d, async ? 16 : 1, &b->schedule, error);
}

static void pmlp__bounds_end(pmlp__bounds *b) {
    pmlp__delete(&b->model->desc.allocator, b->cuts);
    pmlp__delete(&b->model->desc.allocator, b->layer_costs);
    pmlp__delete(&b->model->desc.allocator, b->counted);
    pmlp__delete(&b->model->desc.allocator, b->even);
    pmlp_schedule_destroy(b->schedule);
}

/* The bound of the best cut between whole layers; 0 if there are too few. */
static pmlp_result pmlp__whole_layers(const pmlp_model *model, int workers, double *speedup,
                                      pmlp_error *error) {
    double balance = 0.0;
    pmlp_cut *cuts = (pmlp_cut *)pmlp__new(&model->desc.allocator, (size_t)workers, sizeof *cuts);
    pmlp_result result = cuts ? pmlp_partition(model, workers, true, NULL, cuts, &balance, NULL)
                              : PMLP_ERROR_MEMORY;
    pmlp__delete(&model->desc.allocator, cuts);
    *speedup = result == PMLP_OK ? balance * (double)workers : 0.0;
    return result == PMLP_ERROR_MEMORY ? pmlp__no_memory(error, "bounds") : PMLP_OK;
}

/* With twice the micro-batches and equal stages; 0 if the kind cannot have so many. */
static pmlp_result pmlp__fill_doubled(const pmlp__bounds *b, double *speedup, pmlp_error *error) {
    pmlp_trainer_desc d = b->d;
    pmlp_schedule *s = NULL;
    pmlp_costs even;
    pmlp_result result;
    memset(&even, 0, sizeof even);
    even.ahead = b->even;
    *speedup = 0.0;
    d.costs = &even;
    if (d.custom || d.microbatches > PMLP__MAX_MICROBATCHES / 2) return PMLP_OK;
    d.microbatches *= 2;
    result = pmlp__trainer_schedule(&d, 1, &s, NULL);
    if (result == PMLP_OK) result = pmlp__speedup(&d, s, &even, speedup, NULL);
    pmlp_schedule_destroy(s);
    return result == PMLP_ERROR_MEMORY ? pmlp__no_memory(error, "bounds") : PMLP_OK;
}

/* doubled: what fill and drain would allow with twice the micro-batches. */
static void pmlp__advise(const pmlp__bounds *b, int busiest, double doubled,
                         pmlp_ceiling_report *r) {
    const double ideal = (double)r->workers;
    const double by_cut = ideal / r->balance, by_fill = ideal / r->fill;
    const double by_transfer = r->schedule / r->speedup;
    if (by_cut < 1.01 && by_fill < 1.01 && by_transfer < 1.01) {
        r->binds = "nothing";
        snprintf(r->advice, sizeof r->advice, "nothing to change: all workers are busy throughout");
    } else if (by_transfer >= by_cut && by_transfer >= by_fill) {
        r->binds = "hand-offs";
        snprintf(r->advice, sizeof r->advice,
                 "hand-offs take long for what is computed between them: fewer micro-batches, a "
                 "larger batch, or a schedule that hides them, such as eager-1f1b");
    } else if (by_fill >= by_cut) {
        r->binds = "fill and drain";
        if (b->d.schedule == PMLP_SCHEDULE_SEQUENTIAL) /* not with a schedule of the caller's */
            snprintf(r->advice, sizeof r->advice,
                     "this schedule lets the workers take turns: use 1f1b or another");
        else if (doubled > r->fill)
            snprintf(r->advice, sizeof r->advice,
                     "more micro-batches: with %d instead of %d fill and drain alone would allow "
                     "%.2fx; or a schedule with a smaller bubble, such as zb-h1",
                     2 * b->d.microbatches, b->d.microbatches, doubled);
        else
            snprintf(r->advice, sizeof r->advice,
                     "a schedule with a smaller bubble, such as zb-h1, or more micro-batches");
    } else {
        r->binds = "balance";
        if (b->d.whole_layers)
            snprintf(r->advice, sizeof r->advice,
                     "worker %d has the most to do: allow a cut inside the first layer", busiest);
        else
            snprintf(r->advice, sizeof r->advice,
                     "worker %d has the most to do%s, use fewer workers, or give cuts of your own",
                     busiest,
                     b->given ? ", or had the slower core: cut by costs, see desc.measure_layers"
                              : " and its layers cannot be cut further: make them narrower and "
                                "others wider");
    }
}

static pmlp_result pmlp__bounds_fill(pmlp__bounds *b, pmlp_ceiling_report *r, pmlp_error *error) {
    pmlp_costs even, free_handoffs;
    double busiest, all, doubled;
    int whose, i;
    pmlp_result result;
    memset(&even, 0, sizeof even);
    even.ahead = b->even;
    for (i = 0; i < b->stages; i++) {
        const double f = pmlp__cost(b->costs.f, i, 1.0), ahead = pmlp__cost(b->costs.ahead, i, 0.0);
        b->even[i] = f > 0.0 ? ahead / f : 0.0;
    }
    free_handoffs = b->costs;
    free_handoffs.latency = free_handoffs.per_byte = 0.0;
    all = pmlp__all_work(b->schedule, &b->costs, &busiest, &whose);
    if (!(busiest > 0.0))
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "costs: nothing costs anything");
    r->workers = b->schedule->workers;
    r->balance = all / busiest;
    result = pmlp__whole_layers(b->model, r->workers, &r->whole_layers, error);
    if (result == PMLP_OK) result = pmlp__speedup(&b->d, b->schedule, &even, &r->fill, error);
    if (result == PMLP_OK) result = pmlp__fill_doubled(b, &doubled, error);
    if (result == PMLP_OK)
        result = pmlp__speedup(&b->d, b->schedule, &free_handoffs, &r->schedule, error);
    if (result == PMLP_OK)
        result = pmlp__speedup(&b->d, b->schedule, &b->costs, &r->speedup, error);
    if (result == PMLP_OK) pmlp__advise(b, whose, doubled, r);
    return result;
}

PMLP_API pmlp_result pmlp_ceiling(const pmlp_model *model, const pmlp_trainer_desc *desc,
                                  const pmlp_costs *costs, pmlp_ceiling_report *report,
                                  pmlp_error *error) {
    pmlp__bounds b;
    pmlp_result result;
    memset(&b, 0, sizeof b);
    if (!report) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "report: is NULL");
    memset(report, 0, sizeof *report);
    report->binds = "nothing";
    if (!model || !desc)
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "%s",
                          model ? "desc: is NULL" : "model: is NULL");
    result = pmlp__validate_desc(model, desc, error);
    if (result != PMLP_OK) return result;
    b.model = model;
    b.d = pmlp__trainer_defaults(desc);
    b.shared = b.d.edges->shared;
    b.given = costs != NULL;
    result = pmlp__bounds_begin(&b, costs, error);
    if (result == PMLP_OK) result = pmlp__bounds_fill(&b, report, error);
    pmlp__bounds_end(&b);
    return result;
}

/*============================================================================================*/
/* >>io: IDX files, safetensors                                                               */
/*============================================================================================*/

/* --- IDX files -------------------------------------------------------------------------------- */

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

/* A whole file; *bytes must be freed with pmlp__delete. */
static pmlp_result pmlp__read_file(const char *path, const pmlp_allocator *allocator,
                                   unsigned char **bytes, size_t *size, pmlp_error *error) {
    size_t capacity = 0;
    FILE *file;
    long length = 0;
    int reason;
    *bytes = NULL;
    *size = 0;
    errno = 0;
    file = fopen(path, "rb");
    if (!file) return pmlp__file_failed(path, "opened", errno, error);
    if (pmlp__is_file(path) && fseek(file, 0, SEEK_END) == 0) length = ftell(file);
    rewind(file);
    for (;;) {
        if (*size == capacity) { /* one more than there is, to see the end */
            unsigned char *grown;
            capacity = capacity     ? 2 * capacity
                       : length > 0 ? (size_t)length + 1
                                    : (size_t)1 << 16;
            grown = (unsigned char *)pmlp__new(allocator, capacity, 1);
            if (grown && *size) memcpy(grown, *bytes, *size);
            pmlp__delete(allocator, *bytes);
            *bytes = grown;
            if (!grown) break;
        }
        *size += fread(*bytes + *size, 1, capacity - *size, file);
        if (*size < capacity) break;
    }
    reason = ferror(file) ? errno : 0;
    if (*bytes && !ferror(file)) {
        fclose(file);
        return PMLP_OK;
    }
    fclose(file);
    if (!*bytes) return pmlp__no_memory(error, "a file");
    pmlp__delete(allocator, *bytes);
    *bytes = NULL;
    return pmlp__file_failed(path, "read", reason, error);
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

/* --- files that are replaced ------------------------------------------------------------------ */

/* Onto the disk, in a file that is not there yet. 0, or the errno that says why not; then there is
   none. */
static int pmlp__write_new(const char *path, const unsigned char *bytes, size_t size) {
    const int file = pmlp__create_file(path);
    size_t done = 0;
    int reason = 0;
    if (file < 0) return errno;
    while (!reason && done < size) {
        const long n = pmlp__write_some(file, bytes + done, size - done);
        if (n > 0) done += (size_t)n;
        else if (n == 0) reason = EIO;
        else if (errno != EINTR) reason = errno;
    }
    if (!reason && pmlp__flush_file(file) != 0) reason = errno;
    if (pmlp__close_file(file) != 0 && !reason) reason = errno;
    if (reason) remove(path);
    return reason;
}

/* Cuts a path down to its folder. */
static const char *pmlp__folder_of(char *path) {
    size_t end = strlen(path);
    while (end > 0 && !strchr(PMLP__FOLDER_ENDS, path[end - 1])) end--;
    path[end] = '\0';
    return end > 0 ? path : ".";
}

/* The path has these bytes afterwards or, on failure, what it had before; whoever looks meanwhile
   sees one or the other. The process's number keeps two programs with one path apart, the second
   number two threads, or one program from what another one left when it was killed. */
static pmlp_result pmlp__replace_file(const char *path, const unsigned char *bytes, size_t size,
                                      const pmlp_allocator *allocator, pmlp_error *error) {
    const size_t room = strlen(path) + 48;
    int reason = EEXIST, n;
    char *beside;
    if (pmlp__exists(path) && !pmlp__is_file(path))
        return pmlp__fail(error, PMLP_ERROR_FILE, "%s: cannot be written: it is no regular file",
                          pmlp__path_end(path));
    beside = (char *)pmlp__new(allocator, room, 1);
    if (!beside) return pmlp__no_memory(error, "the name of a file");
    for (n = 0; reason == EEXIST && n < 1000; n++) {
        snprintf(beside, room, "%s.%lu-%d.tmp", path, pmlp__process(), n);
        reason = pmlp__write_new(beside, bytes, size);
    }
    if (!reason && pmlp__rename_file(beside, path) != 0) {
        reason = errno;
        remove(beside);
    }
    if (!reason && pmlp__flush_folder(pmlp__folder_of(beside)) != 0) reason = errno;
    pmlp__delete(allocator, beside);
    return reason ? pmlp__file_failed(path, "written", reason, error) : PMLP_OK;
}

/* --- safetensors: the header ------------------------------------------------------------------ */

/* A safetensors file is the length of its header (64 bits, little-endian), the header, and the
   bytes of its tensors, one behind the other. The header is a JSON object of one fixed form:

      {"__metadata__": {"key": "value", ...},
       "name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}

   It may come from anybody. The reader takes this form and nothing else: what it does not know, it
   refuses. It never looks at a number before it has been compared with the size of the file. */

#define PMLP__HEADER_MOST 100000000u /* bytes, as the format's own library has it */

/* Text inside the file. */
typedef struct pmlp__slice {
    const char *at;
    size_t length;
} pmlp__slice;

static bool pmlp__slice_is(pmlp__slice slice, const char *text) {
    return slice.length == strlen(text) && memcmp(slice.at, text, slice.length) == 0;
}

static int pmlp__slice_order(pmlp__slice a, pmlp__slice b) {
    const size_t both = a.length < b.length ? a.length : b.length;
    const int order = both ? memcmp(a.at, b.at, both) : 0;
    return order ? order : a.length < b.length ? -1 : a.length > b.length;
}

/* How much of it a sentence has room for, for "%.*s". */
static int pmlp__shown(pmlp__slice slice) { return slice.length < 80 ? (int)slice.length : 80; }

static const struct {
    const char *name;
    size_t size;
} pmlp__types[] = {{"F32", 4}, {"F64", 8}, {"F16", 2}, {"BF16", 2}};
enum { PMLP__F32, PMLP__F64, PMLP__F16, PMLP__BF16, PMLP__TYPE_COUNT };

/* What a tensor is to its layer: parts 2 n and 2 n + 1 are w and b of one pmlp_tensor. */
static const char *const pmlp__part_names[] = {"weight",         "bias",
                                               "weight.moment1", "bias.moment1",
                                               "weight.moment2", "bias.moment2"};
enum { PMLP__PART_COUNT = 6 };

typedef struct pmlp__pair {
    pmlp__slice key, value;
} pmlp__pair;

typedef struct pmlp__entry {
    pmlp__slice name;      /* "PREFIX<number>.part" */
    unsigned long number;
    int part;
    int type, rank;        /* rank 3: three or more */
    uint64_t shape[2];     /* the first two sizes */
    uint64_t begin, end;   /* in the data */
} pmlp__entry;

/* A file in memory that belongs to somebody else. */
typedef struct pmlp__tensors {
    const pmlp_allocator *allocator;
    const char *file;      /* its name, for sentences */
    const unsigned char *data;
    size_t data_size;
    bool has_metadata;
    pmlp__pair *pairs;     /* metadata, by key */
    size_t pair_count, pair_room;
    pmlp__entry *entries;  /* layer by layer, part by part */
    size_t entry_count, entry_room;
    int layers, parts;     /* parts: of each layer */
} pmlp__tensors;

/* A place in the header. */
typedef struct pmlp__json {
    const char *begin, *at, *end;
    const char *file;
    pmlp_error *error;
} pmlp__json;

static pmlp_result pmlp__json_fail(const pmlp__json *j, const char *why) {
    return pmlp__fail(j->error, PMLP_ERROR_PARSE, "%s: its header, byte %.0f: %s", j->file,
                      (double)(j->at - j->begin), why);
}

static void pmlp__json_space(pmlp__json *j) {
    while (j->at < j->end && memchr(" \t\r\n", *j->at, 4)) j->at++;
}

/* Takes a character, if it comes next behind white space. */
static bool pmlp__json_is(pmlp__json *j, char c) {
    pmlp__json_space(j);
    if (j->at == j->end || *j->at != c) return false;
    j->at++;
    return true;
}

static pmlp_result pmlp__json_expect(pmlp__json *j, char c) {
    char why[] = "expected ' '";
    why[10] = c;
    return pmlp__json_is(j, c) ? PMLP_OK : pmlp__json_fail(j, why);
}

/* \n or \u0041 */
static bool pmlp__json_escape(pmlp__json *j) {
    const size_t left = (size_t)(j->end - j->at);
    size_t i;
    if (left < 2 || !memchr("\"\\/bfnrtu", j->at[1], 9)) return false;
    if (j->at[1] != 'u') {
        j->at += 2;
        return true;
    }
    if (left < 6) return false;
    for (i = 2; i < 6; i++)
        if (!memchr("0123456789abcdefABCDEF", j->at[i], 22)) return false;
    j->at += 6;
    return true;
}

/* As it is written; escapes stay what they are. */
static pmlp_result pmlp__json_string(pmlp__json *j, pmlp__slice *string) {
    pmlp_result result = pmlp__json_expect(j, '"');
    if (result != PMLP_OK) return result;
    string->at = j->at;
    while (j->at < j->end && *j->at != '"') {
        if ((unsigned char)*j->at < 0x20) return pmlp__json_fail(j, "a control character");
        if (*j->at != '\\') j->at++;
        else if (!pmlp__json_escape(j)) return pmlp__json_fail(j, "an escape that is none");
    }
    if (j->at == j->end) return pmlp__json_fail(j, "a string without an end");
    string->length = (size_t)(j->at++ - string->at);
    return PMLP_OK;
}

/* A name and its colon. With escapes one name could be written in two ways. */
static pmlp_result pmlp__json_key(pmlp__json *j, pmlp__slice *key) {
    const pmlp_result result = pmlp__json_string(j, key);
    if (result != PMLP_OK) return result;
    if (key->length && memchr(key->at, '\\', key->length))
        return pmlp__json_fail(j, "a name with an escape");
    return pmlp__json_expect(j, ':');
}

static pmlp_result pmlp__json_whole(pmlp__json *j, uint64_t *value) {
    const char *first;
    pmlp__json_space(j);
    first = j->at;
    *value = 0;
    for (; j->at < j->end && *j->at >= '0' && *j->at <= '9'; j->at++) {
        const uint64_t digit = (uint64_t)(*j->at - '0');
        if (*value > (UINT64_MAX - digit) / 10) return pmlp__json_fail(j, "too large a number");
        *value = 10 * *value + digit;
    }
    if (j->at == first || (*first == '0' && j->at > first + 1))
        return pmlp__json_fail(j, "expected a whole number");
    return PMLP_OK;
}

static pmlp_result pmlp__json_type(pmlp__json *j, pmlp__entry *e) {
    pmlp__slice type;
    const pmlp_result result = pmlp__json_string(j, &type);
    if (result != PMLP_OK) return result;
    for (e->type = 0; e->type < PMLP__TYPE_COUNT; e->type++)
        if (pmlp__slice_is(type, pmlp__types[e->type].name)) return PMLP_OK;
    return pmlp__fail(j->error, PMLP_ERROR_UNSUPPORTED,
                      "%s: the tensor '%.*s' has the type '%.*s'; what can be read is F32, F64, "
                      "F16 and BF16", j->file, pmlp__shown(e->name), e->name.at, pmlp__shown(type),
                      type.at);
}

static pmlp_result pmlp__json_shape(pmlp__json *j, pmlp__entry *e, uint64_t *elements) {
    pmlp_result result = pmlp__json_expect(j, '[');
    *elements = 1;
    if (result != PMLP_OK || pmlp__json_is(j, ']')) return result;
    do {
        uint64_t size;
        result = pmlp__json_whole(j, &size);
        if (result != PMLP_OK) return result;
        if (size > 0 && *elements > UINT64_MAX / 8 / size)
            return pmlp__json_fail(j, "too large a shape");
        *elements *= size;
        if (e->rank < 2) e->shape[e->rank] = size;
        if (e->rank < 3) e->rank++;
    } while (pmlp__json_is(j, ','));
    return pmlp__json_expect(j, ']');
}

static pmlp_result pmlp__json_offsets(pmlp__json *j, pmlp__entry *e) {
    pmlp_result result = pmlp__json_expect(j, '[');
    if (result == PMLP_OK) result = pmlp__json_whole(j, &e->begin);
    if (result == PMLP_OK) result = pmlp__json_expect(j, ',');
    if (result == PMLP_OK) result = pmlp__json_whole(j, &e->end);
    return result == PMLP_OK ? pmlp__json_expect(j, ']') : result;
}

/* What stands behind a tensor's name. */
static pmlp_result pmlp__json_tensor(pmlp__json *j, pmlp__entry *e) {
    static const char *const names[] = {"dtype", "shape", "data_offsets"};
    uint64_t elements = 0;
    unsigned seen = 0;
    pmlp_result result = pmlp__json_expect(j, '{');
    if (result != PMLP_OK) return result;
    do {
        pmlp__slice key;
        int field = 0;
        result = pmlp__json_key(j, &key);
        if (result != PMLP_OK) return result;
        while (field < 3 && !pmlp__slice_is(key, names[field])) field++;
        if (field == 3 || (seen & 1u << field))
            return pmlp__json_fail(j, "expected dtype, shape and data_offsets, each once");
        seen |= 1u << field;
        result = field == 0   ? pmlp__json_type(j, e)
                 : field == 1 ? pmlp__json_shape(j, e, &elements)
                              : pmlp__json_offsets(j, e);
        if (result != PMLP_OK) return result;
    } while (pmlp__json_is(j, ','));
    if (seen != 7) return pmlp__json_fail(j, "expected dtype, shape and data_offsets, each once");
    if (e->end < e->begin || e->end - e->begin != elements * pmlp__types[e->type].size)
        return pmlp__json_fail(j, "the tensor's offsets do not agree with its shape");
    return pmlp__json_expect(j, '}');
}

/* An array with room for one more, moved perhaps; NULL: no memory, and the old one is as it was. */
static void *pmlp__grown(const pmlp_allocator *allocator, void *array, size_t count, size_t *room,
                         size_t size) {
    const size_t larger = *room ? 2 * *room : 16;
    void *grown;
    if (count < *room) return array;
    grown = pmlp__new(allocator, larger, size);
    if (!grown) return NULL;
    if (count > 0) memcpy(grown, array, count * size);
    pmlp__delete(allocator, array);
    *room = larger;
    return grown;
}

static pmlp_result pmlp__json_metadata(pmlp__json *j, pmlp__tensors *f) {
    pmlp_result result = pmlp__json_expect(j, '{');
    if (f->has_metadata) return pmlp__json_fail(j, "__metadata__ stands there twice");
    f->has_metadata = true;
    if (result != PMLP_OK || pmlp__json_is(j, '}')) return result;
    do {
        pmlp__pair *pairs = (pmlp__pair *)pmlp__grown(f->allocator, f->pairs, f->pair_count,
                                                      &f->pair_room, sizeof *pairs);
        if (!pairs) return pmlp__no_memory(j->error, "a file's metadata");
        f->pairs = pairs;
        result = pmlp__json_key(j, &pairs[f->pair_count].key);
        if (result == PMLP_OK) result = pmlp__json_string(j, &pairs[f->pair_count].value);
        if (result != PMLP_OK) return result;
        f->pair_count++;
    } while (pmlp__json_is(j, ','));
    return pmlp__json_expect(j, '}');
}

static pmlp_result pmlp__json_entry(pmlp__json *j, pmlp__tensors *f, pmlp__slice name) {
    pmlp__entry *entries = (pmlp__entry *)pmlp__grown(f->allocator, f->entries, f->entry_count,
                                                      &f->entry_room, sizeof *entries);
    if (!entries) return pmlp__no_memory(j->error, "a file's list of tensors");
    f->entries = entries;
    entries[f->entry_count].name = name;
    return pmlp__json_tensor(j, &entries[f->entry_count++]);
}

static pmlp_result pmlp__json_header(pmlp__json *j, pmlp__tensors *f) {
    pmlp_result result = pmlp__json_expect(j, '{');
    if (result == PMLP_OK && !pmlp__json_is(j, '}')) {
        do {
            pmlp__slice key;
            result = pmlp__json_key(j, &key);
            if (result != PMLP_OK) return result;
            result = pmlp__slice_is(key, "__metadata__") ? pmlp__json_metadata(j, f)
                                                         : pmlp__json_entry(j, f, key);
            if (result != PMLP_OK) return result;
        } while (pmlp__json_is(j, ','));
        result = pmlp__json_expect(j, '}');
    }
    pmlp__json_space(j);
    return result == PMLP_OK && j->at != j->end ? pmlp__json_fail(j, "expected its end") : result;
}

static bool pmlp__is_utf8(const unsigned char *p, size_t n) {
    size_t i, k, more;
    for (i = 0; i < n; i += more + 1) {
        const unsigned lead = p[i];
        if (lead >= 0x80 && (lead < 0xC2 || lead > 0xF4)) return false;
        more = lead < 0x80 ? 0 : lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
        if (more > n - i - 1) return false;
        for (k = 1; k <= more; k++)
            if ((p[i + k] & 0xC0) != 0x80) return false;
        if ((lead == 0xE0 && p[i + 1] < 0xA0) || (lead == 0xED && p[i + 1] > 0x9F) ||
            (lead == 0xF0 && p[i + 1] < 0x90) || (lead == 0xF4 && p[i + 1] > 0x8F))
            return false; /* too long a form, a surrogate, or beyond the last character */
    }
    return true;
}

/* --- safetensors: what the header says -------------------------------------------------------- */

static int pmlp__by_key(const void *a, const void *b) {
    return pmlp__slice_order(((const pmlp__pair *)a)->key, ((const pmlp__pair *)b)->key);
}

static int pmlp__by_name(const void *a, const void *b) {
    return pmlp__slice_order(((const pmlp__entry *)a)->name, ((const pmlp__entry *)b)->name);
}

static int pmlp__by_offset(const void *a_, const void *b_) {
    const pmlp__entry *a = (const pmlp__entry *)a_, *b = (const pmlp__entry *)b_;
    if (a->begin != b->begin) return a->begin < b->begin ? -1 : 1;
    return a->end < b->end ? -1 : a->end > b->end;
}

static int pmlp__by_layer(const void *a_, const void *b_) {
    const pmlp__entry *a = (const pmlp__entry *)a_, *b = (const pmlp__entry *)b_;
    if (a->number != b->number) return a->number < b->number ? -1 : 1;
    return a->part - b->part;
}

/* No name twice, and each byte of the data belongs to one tensor. */
static pmlp_result pmlp__tensors_tile(pmlp__tensors *f, pmlp_error *error) {
    uint64_t end = 0;
    size_t i;
    if (f->pair_count > 1) qsort(f->pairs, f->pair_count, sizeof *f->pairs, pmlp__by_key);
    for (i = 1; i < f->pair_count; i++)
        if (pmlp__by_key(&f->pairs[i - 1], &f->pairs[i]) == 0)
            return pmlp__fail(error, PMLP_ERROR_PARSE, "%s: its metadata has '%.*s' twice", f->file,
                              pmlp__shown(f->pairs[i].key), f->pairs[i].key.at);
    if (f->entry_count == 0)
        return pmlp__fail(error, PMLP_ERROR_PARSE, "%s: holds no tensors", f->file);
    qsort(f->entries, f->entry_count, sizeof *f->entries, pmlp__by_name);
    for (i = 1; i < f->entry_count; i++)
        if (pmlp__by_name(&f->entries[i - 1], &f->entries[i]) == 0)
            return pmlp__fail(error, PMLP_ERROR_PARSE, "%s: has the tensor '%.*s' twice", f->file,
                              pmlp__shown(f->entries[i].name), f->entries[i].name.at);
    qsort(f->entries, f->entry_count, sizeof *f->entries, pmlp__by_offset);
    for (i = 0; i < f->entry_count; end = f->entries[i++].end)
        if (f->entries[i].begin != end)
            return pmlp__fail(error, PMLP_ERROR_PARSE,
                              "%s: the tensor '%.*s' begins at byte %.0f, the one before it ends "
                              "at %.0f", f->file, pmlp__shown(f->entries[i].name),
                              f->entries[i].name.at, (double)f->entries[i].begin, (double)end);
    if (end != f->data_size)
        return pmlp__fail(error, PMLP_ERROR_PARSE,
                          "%s: its header promises %.0f bytes of data, but %.0f follow", f->file,
                          (double)end, (double)f->data_size);
    return PMLP_OK;
}

/* Reads "PREFIX<number>.part"; false if it is something else. */
static bool pmlp__entry_place(pmlp__entry *e, pmlp__slice *prefix) {
    const pmlp__slice name = e->name;
    size_t stem = 0, digits = 0, i;
    for (e->part = 0; e->part < PMLP__PART_COUNT; e->part++) {
        const char *part = pmlp__part_names[e->part];
        if (name.length < strlen(part) + 2) continue;
        stem = name.length - strlen(part) - 1;
        if (name.at[stem] == '.' && memcmp(name.at + stem + 1, part, strlen(part)) == 0) break;
    }
    if (e->part == PMLP__PART_COUNT) return false;
    while (digits < stem && name.at[stem - 1 - digits] >= '0' && name.at[stem - 1 - digits] <= '9')
        digits++;
    if (digits == 0 || digits > 9 || (digits > 1 && name.at[stem - digits] == '0')) return false;
    e->number = 0;
    for (i = stem - digits; i < stem; i++)
        e->number = 10 * e->number + (unsigned long)(name.at[i] - '0');
    prefix->at = name.at;
    prefix->length = stem - digits;
    return true;
}

/* Puts the tensors into order, layer by layer. None may be missing, none may be another's. */
static pmlp_result pmlp__tensors_layers(pmlp__tensors *f, pmlp_error *error) {
    pmlp__slice first = {NULL, 0}, prefix = {NULL, 0};
    size_t i, parts;
    for (i = 0; i < f->entry_count; i++) {
        pmlp__entry *e = &f->entries[i];
        if (!pmlp__entry_place(e, &prefix))
            return pmlp__fail(error, PMLP_ERROR_PARSE,
                              "%s: the tensor '%.*s' is no layer's: expected names that end in "
                              "<number>.weight and <number>.bias", f->file, pmlp__shown(e->name),
                              e->name.at);
        if (i == 0) first = prefix;
        else if (pmlp__slice_order(first, prefix) != 0)
            return pmlp__fail(error, PMLP_ERROR_PARSE,
                              "%s: the tensors '%.*s' and '%.*s' do not belong to one list of "
                              "layers", f->file, pmlp__shown(f->entries[0].name),
                              f->entries[0].name.at, pmlp__shown(e->name), e->name.at);
        if (e->part / 2 * 2 + 2 > f->parts) f->parts = e->part / 2 * 2 + 2;
    }
    qsort(f->entries, f->entry_count, sizeof *f->entries, pmlp__by_layer);
    parts = (size_t)f->parts;
    for (i = 0; i < f->entry_count || i % parts; i++) {
        const pmlp__entry *owner = &f->entries[i % parts ? i - i % parts : i];
        const bool there = i < f->entry_count && f->entries[i].part == (int)(i % parts) &&
                           f->entries[i].number == owner->number;
        if (!there)
            return pmlp__fail(error, PMLP_ERROR_PARSE, "%s: the tensor '%.*s%lu.%s' is missing",
                              f->file, pmlp__shown(first), first.at, owner->number,
                              pmlp__part_names[i % parts]);
    }
    if (f->entry_count / parts > 1 << 20)
        return pmlp__fail(error, PMLP_ERROR_PARSE, "%s: has more than %d layers", f->file, 1 << 20);
    f->layers = (int)(f->entry_count / parts);
    return PMLP_OK;
}

static const pmlp__entry *pmlp__tensor(const pmlp__tensors *f, int layer, int part) {
    return &f->entries[(size_t)layer * (size_t)f->parts + (size_t)part];
}

/* "[10][20]" */
typedef struct pmlp__shape_label {
    char text[64];
} pmlp__shape_label;

static pmlp__shape_label pmlp__shape_of(int rank, uint64_t a, uint64_t b) {
    pmlp__shape_label label = {""};
    if (rank == 0) snprintf(label.text, sizeof label.text, "a single number");
    if (rank == 1) snprintf(label.text, sizeof label.text, "[%.0f]", (double)a);
    if (rank >= 2)
        snprintf(label.text, sizeof label.text, "[%.0f][%.0f]%s", (double)a, (double)b,
                 rank > 2 ? "..." : "");
    return label;
}

/* The layers must fit together: each takes what the one below gives. */
static pmlp_result pmlp__tensors_shapes(const pmlp__tensors *f, pmlp_error *error) {
    int l, part;
    for (l = 0; l < f->layers; l++)
        for (part = 0; part < f->parts; part++) {
            const pmlp__entry *w = pmlp__tensor(f, l, 0), *e = pmlp__tensor(f, l, part);
            const pmlp__entry *below = l > 0 ? pmlp__tensor(f, l - 1, 0) : NULL;
            const pmlp__entry *beside = part ? w : below;
            const int rank = part % 2 ? 1 : 2;
            const uint64_t n_out = part ? w->shape[0] : e->shape[0];
            const uint64_t n_in = part     ? w->shape[1]
                                  : below ? below->shape[0]
                                          : e->shape[1];
            const pmlp__shape_label is = pmlp__shape_of(e->rank, e->shape[0], e->shape[1]);
            const pmlp__shape_label should = pmlp__shape_of(rank, n_out, n_in);
            if (part == 0 && (e->rank != 2 || e->shape[0] < 1 || e->shape[1] < 1 ||
                              e->shape[0] > INT_MAX || e->shape[1] > INT_MAX))
                return pmlp__fail(error, PMLP_ERROR_SHAPE,
                                  "%s: the tensor '%.*s' is %s; weights are [outputs][inputs], "
                                  "each in 1 .. %d", f->file, pmlp__shown(e->name), e->name.at,
                                  is.text, INT_MAX);
            if (e->rank != rank || e->shape[0] != n_out || (rank == 2 && e->shape[1] != n_in))
                return pmlp__fail(error, PMLP_ERROR_SHAPE,
                                  "%s: the tensor '%.*s' is %s, but beside '%.*s' it must be %s",
                                  f->file, pmlp__shown(e->name), e->name.at, is.text,
                                  pmlp__shown(beside->name), beside->name.at, should.text);
        }
    return PMLP_OK;
}

/* The value of a key in the metadata; at is NULL if there is none. */
static pmlp__slice pmlp__metadata(const pmlp__tensors *f, const char *key) {
    pmlp__slice none = {NULL, 0};
    size_t i;
    for (i = 0; i < f->pair_count; i++)
        if (pmlp__slice_is(f->pairs[i].key, key)) return f->pairs[i].value;
    return none;
}

static void pmlp__tensors_close(pmlp__tensors *f) {
    pmlp__delete(f->allocator, f->pairs);
    pmlp__delete(f->allocator, f->entries);
}

/* Reads a file in memory and finds what is wrong with it, the checksum apart. Close it in either
   case. */
static pmlp_result pmlp__tensors_open(pmlp__tensors *f, const unsigned char *bytes, size_t size,
                                      const char *file, const pmlp_allocator *allocator,
                                      pmlp_error *error) {
    pmlp__json j;
    uint64_t length = 0;
    pmlp_result result;
    int i;
    memset(f, 0, sizeof *f);
    f->allocator = allocator;
    f->file = file;
    if (size < 8)
        return pmlp__fail(error, PMLP_ERROR_PARSE, "%s: %.0f bytes are too few for safetensors",
                          file, (double)size);
    for (i = 7; i >= 0; i--) length = length << 8 | bytes[i];
    if (memcmp(bytes, "PK\3\4", 4) == 0)
        return pmlp__fail(error, PMLP_ERROR_PARSE, "%s: is an archive, as torch.save() writes "
                          "them; expected what safetensors.torch.save_file() writes", file);
    if (length > PMLP__HEADER_MOST || length > size - 8)
        return pmlp__fail(error, PMLP_ERROR_PARSE,
                          "%s: promises a header of %.0f bytes, but %.0f follow; at most %.0f are "
                          "read", file, (double)length, (double)(size - 8),
                          (double)PMLP__HEADER_MOST);
    if (!pmlp__is_utf8(bytes + 8, (size_t)length))
        return pmlp__fail(error, PMLP_ERROR_PARSE, "%s: its header is not UTF-8", file);
    f->data = bytes + 8 + length;
    f->data_size = size - 8 - (size_t)length;
    j.file = file;
    j.error = error;
    j.begin = j.at = (const char *)bytes + 8;
    j.end = (const char *)f->data;
    result = pmlp__json_header(&j, f);
    if (result == PMLP_OK) result = pmlp__tensors_tile(f, error);
    if (result == PMLP_OK) result = pmlp__tensors_layers(f, error);
    return result == PMLP_OK ? pmlp__tensors_shapes(f, error) : result;
}

/* --- safetensors: what is ours ---------------------------------------------------------------- */

#define PMLP__FILE_VERSION "1"
#define PMLP__CHECKSUM "pipemlp_checksum"

static uint64_t pmlp__hash_slice(uint64_t hash, pmlp__slice slice) {
    return pmlp_hash(pmlp_hash(hash, slice.at, slice.length), "", 1);
}

/* Over metadata and tensors, in an order that does not depend on that of the file. */
static uint64_t pmlp__tensors_hash(const pmlp__tensors *f) {
    uint64_t hash = 0;
    size_t i;
    for (i = 0; i < f->pair_count; i++)
        if (!pmlp__slice_is(f->pairs[i].key, PMLP__CHECKSUM))
            hash = pmlp__hash_slice(pmlp__hash_slice(hash, f->pairs[i].key), f->pairs[i].value);
    for (i = 0; i < f->entry_count; i++) {
        const pmlp__entry *e = &f->entries[i];
        const pmlp__shape_label shape = pmlp__shape_of(e->rank, e->shape[0], e->shape[1]);
        hash = pmlp__hash_slice(hash, e->name);
        hash = pmlp_hash(hash, pmlp__types[e->type].name, strlen(pmlp__types[e->type].name) + 1);
        hash = pmlp_hash(hash, shape.text, strlen(shape.text) + 1);
        hash = pmlp_hash(hash, f->data + e->begin, (size_t)(e->end - e->begin));
    }
    return hash;
}

/* As pmlp_model_hash() of the model in the file. */
static uint64_t pmlp__tensors_word(const pmlp__tensors *f) {
    uint64_t hash = 0;
    int l, part;
    for (l = 0; l < f->layers; l++)
        for (part = 0; part < 2; part++) {
            const pmlp__entry *e = pmlp__tensor(f, l, part);
            hash = pmlp_hash(hash, f->data + e->begin, (size_t)(e->end - e->begin));
        }
    return hash;
}

typedef struct pmlp__word_label {
    char text[17];
} pmlp__word_label;

static pmlp__word_label pmlp__word_of(uint64_t word) {
    pmlp__word_label label;
    snprintf(label.text, sizeof label.text, "%08lx%08lx", (unsigned long)(word >> 32),
             (unsigned long)(word & 0xFFFFFFFFu));
    return label;
}

/* Files of this library say so, and then their checksum must hold. */
static pmlp_result pmlp__tensors_prove(const pmlp__tensors *f, pmlp_error *error) {
    const pmlp__slice version = pmlp__metadata(f, "pipemlp");
    const pmlp__slice checksum = pmlp__metadata(f, PMLP__CHECKSUM);
    if (!version.at && !checksum.at) return PMLP_OK;
    if (version.at && !pmlp__slice_is(version, PMLP__FILE_VERSION))
        return pmlp__fail(error, PMLP_ERROR_UNSUPPORTED,
                          "%s: is of version '%.*s' of pipemlp's files; what can be read is "
                          "version " PMLP__FILE_VERSION, f->file, pmlp__shown(version), version.at);
    if (version.at && checksum.at &&
        pmlp__slice_is(checksum, pmlp__word_of(pmlp__tensors_hash(f)).text))
        return PMLP_OK;
    return pmlp__fail(error, PMLP_ERROR_PARSE,
                      "%s: is damaged, or was changed: its checksum is %.*s, that of what it holds "
                      "%s", f->file, checksum.at ? pmlp__shown(checksum) : 7,
                      checksum.at ? checksum.at : "missing",
                      pmlp__word_of(pmlp__tensors_hash(f)).text);
}

static pmlp_result pmlp__tensors_read(pmlp__tensors *f, const unsigned char *bytes, size_t size,
                                      const char *file, const pmlp_allocator *allocator,
                                      pmlp_error *error) {
    const pmlp_result result = pmlp__tensors_open(f, bytes, size, file, allocator, error);
    return result == PMLP_OK ? pmlp__tensors_prove(f, error) : result;
}

static uint64_t pmlp__little_endian(const unsigned char *p, size_t size) {
    uint64_t bits = 0;
    while (size-- > 0) bits = bits << 8 | p[size];
    return bits;
}

/* A half: 1 bit sign, 5 bits exponent, 10 bits behind the point. */
static float pmlp__from_half(uint32_t half) {
    const uint32_t sign = half >> 15 << 31, exponent = half >> 10 & 31, rest = half & 1023;
    const uint32_t wide = exponent == 31 ? 255u : exponent + 112;
    uint32_t bits = sign | wide << 23 | rest << 13;
    float value;
    if (exponent == 0) { /* too small for a leading 1 */
        value = (float)rest / 16777216.0f;
        return sign ? -value : value;
    }
    memcpy(&value, &bits, sizeof value);
    return value;
}

static float pmlp__number(int type, const unsigned char *p) {
    const uint64_t bits = pmlp__little_endian(p, pmlp__types[type].size);
    const uint32_t low = (uint32_t)(type == PMLP__BF16 ? bits << 16 : bits);
    double wide;
    float value;
    if (type == PMLP__F16) return pmlp__from_half(low);
    if (type == PMLP__F64) {
        memcpy(&wide, &bits, sizeof wide);
        return (float)wide;
    }
    memcpy(&value, &low, sizeof value);
    return value;
}

static void pmlp__tensor_copy(const pmlp__tensors *f, int layer, int part, float *out) {
    const pmlp__entry *e = pmlp__tensor(f, layer, part);
    const size_t size = pmlp__types[e->type].size, n = (size_t)(e->end - e->begin) / size;
    const unsigned char *from = f->data + e->begin;
    size_t i;
    for (i = 0; i < n; i++) out[i] = pmlp__number(e->type, from + i * size);
}

static void pmlp__tensors_weights(const pmlp__tensors *f, pmlp_model *model) {
    int l;
    for (l = 0; l < f->layers; l++) {
        pmlp__tensor_copy(f, l, 0, model->w[l]);
        pmlp__tensor_copy(f, l, 1, model->b[l]);
    }
    model->stale = false;
}

/* "relu,linear" into out [layers]; each is _DEFAULT if the file does not say. */
static pmlp_result pmlp__tensors_activations(const pmlp__tensors *f, pmlp_activation *out,
                                             pmlp_error *error) {
    const pmlp__slice list = pmlp__metadata(f, "activations");
    pmlp__slice word = list;
    int l, a = 1;
    memset(out, 0, (size_t)f->layers * sizeof *out);
    if (!list.at) return PMLP_OK;
    for (l = 0; a < PMLP_ACTIVATION_COUNT && l < f->layers; l++) {
        const size_t left = list.length - (size_t)(word.at - list.at);
        const char *comma = left ? (const char *)memchr(word.at, ',', left) : NULL;
        word.length = l < f->layers - 1 && comma ? (size_t)(comma - word.at) : left;
        for (a = 1; a < PMLP_ACTIVATION_COUNT; a++)
            if (pmlp__slice_is(word, pmlp_activation_name((pmlp_activation)a))) break;
        out[l] = (pmlp_activation)a;
        if (comma) word.at = comma + 1;
        else word.at += left;
    }
    if (a < PMLP_ACTIVATION_COUNT) return PMLP_OK;
    return pmlp__fail(error, PMLP_ERROR_PARSE,
                      "%s: its activations are '%.*s', expected %d of relu, sigmoid, tanh, gelu "
                      "and linear, with commas", f->file, pmlp__shown(list), list.at, f->layers);
}

static pmlp_result pmlp__tensors_loss(const pmlp__tensors *f, pmlp_loss *loss, pmlp_error *error) {
    const pmlp__slice name = pmlp__metadata(f, "loss");
    int i;
    *loss = PMLP_LOSS_DEFAULT;
    if (!name.at) return PMLP_OK;
    for (i = 1; i < PMLP_LOSS_COUNT; i++)
        if (pmlp__slice_is(name, pmlp_loss_name((pmlp_loss)i))) {
            *loss = (pmlp_loss)i;
            return PMLP_OK;
        }
    return pmlp__fail(error, PMLP_ERROR_PARSE, "%s: its loss is '%.*s', expected xent or mse",
                      f->file, pmlp__shown(name), name.at);
}

static pmlp_result pmlp__tensors_model(const pmlp__tensors *f, pmlp_model **model,
                                       pmlp_error *error) {
    const size_t layers = (size_t)f->layers;
    int *sizes = (int *)pmlp__new(f->allocator, layers + 1, sizeof *sizes);
    pmlp_activation *activations =
        (pmlp_activation *)pmlp__new(f->allocator, layers, sizeof *activations);
    pmlp_model_desc desc;
    pmlp_result result = PMLP_OK;
    int l;
    memset(&desc, 0, sizeof desc);
    desc.allocator = *f->allocator;
    desc.layers = f->layers;
    desc.sizes = sizes;
    desc.activations = activations;
    if (!sizes || !activations) result = pmlp__no_memory(error, "a model's sizes");
    if (result == PMLP_OK) result = pmlp__tensors_activations(f, activations, error);
    if (result == PMLP_OK) result = pmlp__tensors_loss(f, &desc.loss, error);
    if (result == PMLP_OK) {
        sizes[0] = (int)pmlp__tensor(f, 0, 0)->shape[1];
        for (l = 0; l < f->layers; l++) sizes[l + 1] = (int)pmlp__tensor(f, l, 0)->shape[0];
        *model = pmlp__model_new(&desc);
        if (*model) pmlp__tensors_weights(f, *model);
        else result = pmlp__no_memory(error, "a model's weights");
    }
    pmlp__delete(f->allocator, sizes);
    pmlp__delete(f->allocator, activations);
    return result;
}

static pmlp_result pmlp__model_parse(const unsigned char *bytes, size_t size, const char *file,
                                     const pmlp_allocator *allocator, pmlp_model **model,
                                     pmlp_error *error) {
    pmlp__tensors f;
    pmlp_result result = pmlp__tensors_read(&f, bytes, size, file, allocator, error);
    if (result == PMLP_OK) result = pmlp__tensors_model(&f, model, error);
    pmlp__tensors_close(&f);
    return result;
}

/* Whether the file's layers are the model's. */
static pmlp_result pmlp__tensors_fit(const pmlp__tensors *f, const pmlp_model *model,
                                     pmlp_error *error) {
    int l;
    if (f->layers != model->desc.layers)
        return pmlp__fail(error, PMLP_ERROR_SHAPE, "%s: has %d layer%s, the model has %d", f->file,
                          f->layers, f->layers == 1 ? "" : "s", model->desc.layers);
    for (l = 0; l < f->layers; l++) {
        const pmlp__entry *w = pmlp__tensor(f, l, 0);
        const size_t n_in = pmlp__n_in(model, l), n_out = pmlp__n_out(model, l);
        if (w->shape[0] == n_out && w->shape[1] == n_in) continue;
        return pmlp__fail(error, PMLP_ERROR_SHAPE, "%s: the tensor '%.*s' is %s, the model's is %s",
                          f->file, pmlp__shown(w->name), w->name.at,
                          pmlp__shape_of(2, w->shape[0], w->shape[1]).text,
                          pmlp__shape_of(2, n_out, n_in).text);
    }
    return PMLP_OK;
}

/* --- safetensors: numbers in the metadata ----------------------------------------------------- */

static void pmlp__put_whole(pmlp__text *text, uint64_t value) {
    char digits[24];
    size_t at = sizeof digits - 1;
    digits[at] = '\0';
    do digits[--at] = (char)('0' + value % 10);
    while (value /= 10);
    pmlp__put(text, "%s", digits + at);
}

/* With as few digits as give the same bits when they are read, as a float or a double; and with a
   point, whatever the locale has. */
static void pmlp__put_exact(pmlp__text *text, double value, bool single) {
    const int most = single ? 9 : 17;
    char number[40], *c;
    bool point = false;
    int digits;
    for (digits = 1; digits <= most; digits++) {
        double back;
        snprintf(number, sizeof number, "%.*g", digits, value);
        back = strtod(number, NULL);
        if (single ? (float)back == (float)value : back == value) break;
    }
    for (c = number; *c; c++) {
        const bool plain = strchr("0123456789+-einfa", *c) != NULL;
        if (plain) pmlp__put(text, "%c", *c);
        else if (!point) pmlp__put(text, ".");
        point = point || !plain;
    }
}

static bool pmlp__read_whole(pmlp__slice slice, uint64_t most, uint64_t *value) {
    size_t i;
    *value = 0;
    for (i = 0; i < slice.length; i++) {
        const uint64_t digit = (uint64_t)(unsigned char)slice.at[i] - '0';
        if (digit > 9 || *value > (most - digit) / 10) return false;
        *value = 10 * *value + digit;
    }
    return slice.length > 0;
}

static bool pmlp__read_exact(pmlp__slice slice, double *value) {
    char number[80], half[16], *end;
    size_t length = 0, i, k;
    if (slice.length == 0 || slice.length > 40 || slice.at[0] == ' ') return false;
    snprintf(half, sizeof half, "%.1f", 0.5); /* the locale's point stands behind the 0 */
    for (i = 0; i < slice.length; i++) {
        if (slice.at[i] != '.') number[length++] = slice.at[i];
        else
            for (k = 1; half[k] != '5' && length < sizeof number - 1; k++)
                number[length++] = half[k];
        if (length + 8 > sizeof number) return false;
    }
    number[length] = '\0';
    *value = strtod(number, &end);
    return end == number + length;
}

/* --- trainings in files ----------------------------------------------------------------------- */

/* What must be the same when a training goes on: name and value of the i-th such setting; false
   behind the last. What the optimizer does not use is no setting. */
static bool pmlp__setting(const pmlp_trainer *t, int i, const char **name, char value[48]) {
    static const char *const names[] = {"batch", "optimizer", "seed", "shuffle", "weight_decay",
                                        "clip_norm", "momentum", "beta1", "beta2", "epsilon"};
    const pmlp_trainer_desc *d = &t->desc;
    const float numbers[] = {d->weight_decay, d->clip_norm, d->momentum,
                             d->beta1,        d->beta2,     d->epsilon};
    const int moments = pmlp__moments(d->optimizer);
    pmlp__text text;
    if (i >= 6 && moments == 2) i++;
    if (i >= (moments == 0 ? 6 : moments == 1 ? 7 : 10)) return false;
    text.buffer = value;
    text.size = 48;
    text.length = 0;
    *name = names[i];
    if (i == 0) pmlp__put_whole(&text, d->batch);
    else if (i == 1) pmlp__put(&text, "%s", pmlp_optimizer_name(d->optimizer));
    else if (i == 2) pmlp__put_whole(&text, d->seed);
    else if (i == 3) pmlp__put(&text, "%s", d->no_shuffle ? "no" : "yes");
    else pmlp__put_exact(&text, (double)numbers[i - 4], true);
    pmlp__text_end(&text, NULL);
    return true;
}

/* How far a training has come. */
enum {
    PMLP__STEP, PMLP__UPDATES, PMLP__EPOCH, PMLP__EPOCH_TOTAL, PMLP__EPOCH_ROWS, PMLP__EPOCH_HITS,
    PMLP__COUNTS
};
typedef struct pmlp__state {
    uint64_t counts[PMLP__COUNTS];
    double epoch_loss, learning_rate;
} pmlp__state;

static const char *const pmlp__count_names[] = {"step",             "updates",    "epoch",
                                                "epoch_total_rows", "epoch_rows", "epoch_hits"};

static pmlp__state pmlp__state_of(const pmlp_trainer *t) {
    pmlp__state s;
    uint64_t updates = 0;
    int i;
    for (i = 0; i < t->schedule->stages; i++) /* they have equally many between calls */
        if (t->stages[i].updates - t->stages[i].first_version > updates)
            updates = t->stages[i].updates - t->stages[i].first_version;
    s.counts[PMLP__STEP] = t->step;
    s.counts[PMLP__UPDATES] = t->updates_loaded + updates;
    s.counts[PMLP__EPOCH] = t->epoch;
    s.counts[PMLP__EPOCH_TOTAL] = t->epoch_total;
    s.counts[PMLP__EPOCH_ROWS] = t->epoch_rows;
    s.counts[PMLP__EPOCH_HITS] = t->epoch_hits;
    s.epoch_loss = t->epoch_loss;
    s.learning_rate = (double)t->desc.learning_rate;
    return s;
}

/* The trainer's layers hold the loaded weights: version `updates` of each stage, the first one. */
static void pmlp__state_set(pmlp_trainer *t, const pmlp__state *s) {
    int i;
    t->step = s->counts[PMLP__STEP];
    t->updates_loaded = s->counts[PMLP__UPDATES];
    t->epoch = s->counts[PMLP__EPOCH];
    t->epoch_total = s->counts[PMLP__EPOCH_TOTAL];
    t->epoch_rows = s->counts[PMLP__EPOCH_ROWS];
    t->epoch_hits = s->counts[PMLP__EPOCH_HITS];
    t->epoch_loss = s->epoch_loss;
    t->desc.learning_rate = (float)s->learning_rate;
    t->gradient_norm = 0.0;
    t->has_gradient = false;
    for (i = 0; i < t->schedule->stages; i++) t->stages[i].first_version = t->stages[i].updates;
}

static void pmlp__put_training(pmlp__text *text, const pmlp_trainer *t) {
    const pmlp__state s = pmlp__state_of(t);
    const char *name;
    char value[48];
    int i;
    for (i = 0; pmlp__setting(t, i, &name, value); i++) {
        pmlp__put(text, ",\"%s\":", name);
        pmlp__put(text, "\"%s\"", value);
    }
    for (i = 0; i < PMLP__COUNTS; i++) {
        pmlp__put(text, ",\"%s\":\"", pmlp__count_names[i]);
        pmlp__put_whole(text, s.counts[i]);
        pmlp__put(text, "\"");
    }
    pmlp__put(text, ",\"epoch_loss\":\"");
    pmlp__put_exact(text, s.epoch_loss, false);
    pmlp__put(text, "\",\"learning_rate\":\"");
    pmlp__put_exact(text, s.learning_rate, true);
    pmlp__put(text, "\"");
}

static pmlp_result pmlp__state_read(const pmlp__tensors *f, size_t batch, pmlp__state *s,
                                    pmlp_error *error) {
    const uint64_t *n = s->counts;
    bool good = true;
    int i;
    for (i = 0; i < PMLP__COUNTS; i++)
        good = good && pmlp__read_whole(pmlp__metadata(f, pmlp__count_names[i]),
                                        (uint64_t)1 << 53, &s->counts[i]);
    good = good && pmlp__read_exact(pmlp__metadata(f, "epoch_loss"), &s->epoch_loss) &&
           pmlp__read_exact(pmlp__metadata(f, "learning_rate"), &s->learning_rate) &&
           !pmlp__below_zero((float)s->learning_rate) &&
           n[PMLP__EPOCH_TOTAL] <= UINT32_MAX / 2 && n[PMLP__EPOCH_ROWS] <= n[PMLP__EPOCH_TOTAL] &&
           n[PMLP__EPOCH_HITS] <= n[PMLP__EPOCH_ROWS] &&
           (n[PMLP__EPOCH_ROWS] % batch == 0 || n[PMLP__EPOCH_ROWS] == n[PMLP__EPOCH_TOTAL]);
    return good ? PMLP_OK
                : pmlp__fail(error, PMLP_ERROR_PARSE,
                             "%s: what it says of the training's progress makes no sense", f->file);
}

/* --- files that are ours, written ------------------------------------------------------------- */

/* A whole file in memory. */
typedef struct pmlp__image {
    const pmlp_allocator *allocator;
    const pmlp_model *model;
    pmlp_trainer *trainer; /* whose training it is; NULL: the model alone */
    int parts;             /* of each layer */
    unsigned char *bytes;
    size_t size, data;     /* data: where the tensors begin, a multiple of 8 */
} pmlp__image;

/* How many numbers a tensor has. */
static size_t pmlp__part_count(const pmlp_model *model, int layer, int part) {
    const size_t n_out = pmlp__n_out(model, layer);
    return part % 2 ? n_out : n_out * pmlp__n_in(model, layer);
}

static void pmlp__put_header(pmlp__text *text, const pmlp__image *image) {
    const pmlp_model *model = image->model;
    double at = 0.0;
    int l, part;
    pmlp__put(text, "{\"__metadata__\":{\"format\":\"pt\",\"pipemlp\":\"" PMLP__FILE_VERSION
              "\",\"" PMLP__CHECKSUM "\":\"0000000000000000\",\"weights\":\"0000000000000000\","
              "\"activations\":\"");
    for (l = 0; l < model->desc.layers; l++)
        pmlp__put(text, l > 0 ? ",%s" : "%s", pmlp_activation_name(model->activations[l]));
    pmlp__put(text, "\",\"loss\":\"%s\"", pmlp_loss_name(model->desc.loss));
    if (image->trainer) pmlp__put_training(text, image->trainer);
    pmlp__put(text, "}");
    for (l = 0; l < model->desc.layers; l++)
        for (part = 0; part < image->parts; part++) {
            const double end = at + 4.0 * (double)pmlp__part_count(model, l, part);
            pmlp__put(text, ",\"layers.%d.%s", l, pmlp__part_names[part]);
            pmlp__put(text, "\":{\"dtype\":\"F32\",\"shape\":[%.0f", (double)pmlp__n_out(model, l));
            if (part % 2 == 0) pmlp__put(text, ",%.0f", (double)pmlp__n_in(model, l));
            pmlp__put(text, "],\"data_offsets\":[%.0f,%.0f]}", at, end);
            at = end;
        }
    pmlp__put(text, "}");
}

/* The file without its numbers, *bytes being NULL on failure. */
static pmlp_result pmlp__image_begin(pmlp__image *image, pmlp_error *error) {
    const size_t floats = image->model->param_count * (size_t)image->parts / 2;
    pmlp__text text = {NULL, 0, 0};
    size_t length, i;
    pmlp__put_header(&text, image);
    length = (text.length + 8) / 8 * 8; /* spaces behind it: put() ends what it writes with a 0 */
    image->data = 8 + length;
    image->size = image->data + 4 * floats;
    image->bytes = (unsigned char *)pmlp__new(image->allocator, image->size, 1);
    if (!image->bytes) return pmlp__no_memory(error, "a file");
    for (i = 0; i < 8; i++) image->bytes[i] = (unsigned char)((uint64_t)length >> 8 * i);
    text.buffer = (char *)image->bytes + 8;
    text.size = length;
    text.length = 0;
    pmlp__put_header(&text, image);
    memset(text.buffer + text.length, ' ', length - text.length);
    return PMLP_OK;
}

/* Fills in the numbers: with a trainer, what its stages have. */
static pmlp_result pmlp__image_fill(pmlp__image *image) {
    float *at = (float *)(void *)(image->bytes + image->data);
    const pmlp_model *model = image->model;
    const size_t floats = (image->size - image->data) / sizeof *at;
    pmlp_result result = PMLP_OK;
    size_t i;
    int l, part;
    for (l = 0; l < model->desc.layers; l++)
        for (part = 0; part < image->parts; part += 2) {
            const size_t n_w = pmlp__part_count(model, l, 0), n_b = pmlp__part_count(model, l, 1);
            const pmlp_tensor tensor = part == 0   ? PMLP_TENSOR_PARAMS
                                       : part == 2 ? PMLP_TENSOR_MOMENT1
                                                   : PMLP_TENSOR_MOMENT2;
            if (image->trainer) {
                result = pmlp__read_layer(image->trainer, l, tensor, at, at + n_w);
                if (result != PMLP_OK) return result;
            } else {
                memcpy(at, model->w[l], n_w * sizeof *at);
                memcpy(at + n_w, model->b[l], n_b * sizeof *at);
            }
            at += n_w + n_b;
        }
    at = (float *)(void *)(image->bytes + image->data);
    for (i = 0; i < floats; i++) pmlp__put_float(image->bytes + image->data + 4 * i, &at[i]);
    return PMLP_OK;
}

static void pmlp__image_patch(pmlp__image *image, pmlp__slice place, uint64_t word) {
    memcpy(image->bytes + (place.at - (const char *)image->bytes), pmlp__word_of(word).text, 16);
}

/* The two words over what the file holds. They are made by what reads files, so that nothing is
   written that could not be read. */
static pmlp_result pmlp__image_seal(pmlp__image *image, pmlp_error *error) {
    pmlp__tensors f;
    const pmlp_result result = pmlp__tensors_open(&f, image->bytes, image->size, "the new file",
                                                  image->allocator, error);
    if (result == PMLP_OK) {
        pmlp__image_patch(image, pmlp__metadata(&f, "weights"), pmlp__tensors_word(&f));
        pmlp__image_patch(image, pmlp__metadata(&f, PMLP__CHECKSUM), pmlp__tensors_hash(&f));
    }
    pmlp__tensors_close(&f);
    return result;
}

/* Free image->bytes in either case. */
static pmlp_result pmlp__image_make(pmlp__image *image, const pmlp_model *model, pmlp_trainer *t,
                                    pmlp_error *error) {
    pmlp_result result;
    memset(image, 0, sizeof *image);
    image->allocator = t ? &t->desc.allocator : &model->desc.allocator;
    image->model = model;
    image->trainer = t;
    image->parts = t ? 2 + 2 * pmlp__moments(t->desc.optimizer) : 2;
    result = pmlp__image_begin(image, error);
    if (result != PMLP_OK) return result;
    result = pmlp__image_fill(image);
    if (result != PMLP_OK)
        return pmlp__fail(error, result, "reading the training's state: %s",
                          pmlp_result_text(result));
    return pmlp__image_seal(image, error);
}

/* --- calls ------------------------------------------------------------------------------------ */

static pmlp_result pmlp__check_path(const char *path, pmlp_error *error) {
    if (path && *path) return PMLP_OK;
    return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "path: is %s", path ? "empty" : "NULL");
}

PMLP_API pmlp_result pmlp_model_save(const pmlp_model *model, const char *path, pmlp_error *error) {
    pmlp__image image;
    pmlp_result result = pmlp__model_readable(model, error);
    if (result == PMLP_OK) result = pmlp__check_path(path, error);
    if (result != PMLP_OK) return result;
    result = pmlp__image_make(&image, model, NULL, error);
    if (result == PMLP_OK)
        result = pmlp__replace_file(path, image.bytes, image.size, image.allocator, error);
    pmlp__delete(image.allocator, image.bytes);
    return result;
}

PMLP_API pmlp_result pmlp_model_parse(const void *bytes, size_t size,
                                      const pmlp_allocator *allocator, pmlp_model **model,
                                      pmlp_error *error) {
    const pmlp_allocator memory = pmlp__allocator_or_default(allocator);
    if (!model) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "model: is NULL");
    *model = NULL;
    if (pmlp__is_half(&memory))
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "allocator: has only one of alloc and free");
    if (!bytes) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "bytes: is NULL");
    return pmlp__model_parse((const unsigned char *)bytes, size, "the file", &memory, model, error);
}

PMLP_API pmlp_result pmlp_model_load(const char *path, const pmlp_allocator *allocator,
                                     pmlp_model **model, pmlp_error *error) {
    const pmlp_allocator memory = pmlp__allocator_or_default(allocator);
    unsigned char *bytes = NULL;
    size_t size;
    pmlp_result result;
    if (!model) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "model: is NULL");
    *model = NULL;
    if (pmlp__is_half(&memory))
        return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "allocator: has only one of alloc and free");
    result = pmlp__check_path(path, error);
    if (result == PMLP_OK) result = pmlp__read_file(path, &memory, &bytes, &size, error);
    if (result == PMLP_OK)
        result = pmlp__model_parse(bytes, size, pmlp__path_end(path), &memory, model, error);
    pmlp__delete(&memory, bytes);
    return result;
}

PMLP_API pmlp_result pmlp_model_load_weights(pmlp_model *model, const char *path,
                                             pmlp_error *error) {
    const pmlp_allocator *allocator;
    pmlp__tensors f;
    unsigned char *bytes = NULL;
    size_t size;
    pmlp_result result;
    if (!model) return pmlp__fail(error, PMLP_ERROR_ARGUMENT, "model: is NULL");
    if (model->trainer)
        return pmlp__fail(error, PMLP_ERROR_STATE, "model: has a trainer, which has its weights");
    allocator = &model->desc.allocator;
    result = pmlp__check_path(path, error);
    if (result == PMLP_OK) result = pmlp__read_file(path, allocator, &bytes, &size, error);
    if (result != PMLP_OK) return result;
    result = pmlp__tensors_read(&f, bytes, size, pmlp__path_end(path), allocator, error);
    if (result == PMLP_OK) result = pmlp__tensors_fit(&f, model, error);
    if (result == PMLP_OK) pmlp__tensors_weights(&f, model);
    pmlp__tensors_close(&f);
    pmlp__delete(allocator, bytes);
    return result;
}

PMLP_API pmlp_result pmlp_trainer_save(pmlp_trainer *t, const char *path) {
    pmlp__image image;
    pmlp_result result;
    pmlp__atomic *const entered = pmlp__enter_query(t);
    if (!entered) return t ? PMLP_ERROR_STATE : PMLP_ERROR_ARGUMENT;
    result = pmlp__check_path(path, &t->error);
    if (result == PMLP_OK && pmlp__is_mixed(t))
        result = pmlp__fail(&t->error, PMLP_ERROR_STATE, "the weights are lost: %.200s",
                            t->failure.text);
    result = pmlp__agree_on_reading(t, "save", -1, true, true, result);
    if (result != PMLP_OK) return pmlp__leave_query(entered, result);
    result = pmlp__image_make(&image, t->model, t, &t->error);
    if (result == PMLP_OK && (!t->group || t->group->rank == 0))
        result = pmlp__replace_file(path, image.bytes, image.size, image.allocator, &t->error);
    pmlp__delete(image.allocator, image.bytes);
    if (!pmlp__load(&t->failed)) result = pmlp__agree(t, result, NULL, &t->error);
    return pmlp__leave_query(entered, result);
}

/* Whether a file holds a training that this trainer can go on with. */
static pmlp_result pmlp__trainer_fits(pmlp_trainer *t, const pmlp__tensors *f, pmlp__state *state) {
    const int parts = 2 + 2 * pmlp__moments(t->desc.optimizer);
    const pmlp__slice loss = pmlp__metadata(f, "loss");
    const char *name, *model_loss = pmlp_loss_name(t->model->desc.loss);
    char value[48];
    int i;
    pmlp_result result = pmlp__tensors_fit(f, t->model, &t->error);
    if (result != PMLP_OK) return result;
    if (!pmlp__metadata(f, "step").at || !pmlp__metadata(f, "optimizer").at)
        return pmlp__fail(&t->error, PMLP_ERROR_PARSE,
                          "%s: holds a model, but no training to go on with", f->file);
    if (loss.at && !pmlp__slice_is(loss, model_loss))
        return pmlp__fail(&t->error, PMLP_ERROR_ARGUMENT, "loss: %.*s in the training of %s, %s "
                          "here", pmlp__shown(loss), loss.at, f->file, model_loss);
    for (i = 0; pmlp__setting(t, i, &name, value); i++) {
        const pmlp__slice theirs = pmlp__metadata(f, name);
        if (theirs.at && pmlp__slice_is(theirs, value)) continue;
        return pmlp__fail(&t->error, PMLP_ERROR_ARGUMENT, "%s: %.*s in the training of %s, %s here",
                          name, theirs.at ? pmlp__shown(theirs) : 7,
                          theirs.at ? theirs.at : "missing", f->file, value);
    }
    if (f->parts != parts)
        return pmlp__fail(&t->error, PMLP_ERROR_PARSE, "%s: has %d moments of each weight, %s has "
                          "%d", f->file, f->parts / 2 - 1,
                          pmlp_optimizer_name(t->desc.optimizer), parts / 2 - 1);
    return pmlp__state_read(f, t->desc.batch, state, &t->error);
}

static pmlp_result pmlp__same_activations(pmlp_trainer *t, const pmlp__tensors *f) {
    const pmlp_model *model = t->model;
    pmlp_activation *theirs = (pmlp_activation *)pmlp__new(
        f->allocator, (size_t)model->desc.layers, sizeof *theirs);
    pmlp_result result;
    int l;
    if (!theirs) return pmlp__no_memory(&t->error, "a model's activations");
    result = pmlp__tensors_activations(f, theirs, &t->error);
    for (l = 0; result == PMLP_OK && l < model->desc.layers; l++)
        if (theirs[l] && theirs[l] != model->activations[l])
            result = pmlp__fail(&t->error, PMLP_ERROR_ARGUMENT,
                                "activations: layer %d is %s in the training of %s, %s here", l,
                                pmlp_activation_name(theirs[l]), f->file,
                                pmlp_activation_name(model->activations[l]));
    pmlp__delete(f->allocator, theirs);
    return result;
}

/* Tensors of one kind into the stages, by way of scratch, which has room for any layer, or, the
   weights, the model. */
static pmlp_result pmlp__trainer_take(pmlp_trainer *t, const pmlp__tensors *f, int part,
                                      float *scratch) {
    static const pmlp_tensor tensors[] = {PMLP_TENSOR_PARAMS, PMLP_TENSOR_MOMENT1,
                                          PMLP_TENSOR_MOMENT2};
    pmlp_result result = PMLP_OK;
    int l;
    for (l = 0; result == PMLP_OK && l < f->layers; l++) {
        float *w = part == 0 ? t->model->w[l] : scratch;
        float *b = part == 0 ? t->model->b[l] : scratch + pmlp__part_count(t->model, l, 0);
        pmlp__tensor_copy(f, l, part, w);
        pmlp__tensor_copy(f, l, part + 1, b);
        result = pmlp__write_layer(t, l, tensors[part / 2], w, b);
    }
    return result;
}

static pmlp_result pmlp__trainer_parse(pmlp_trainer *t, const unsigned char *bytes, size_t size,
                                       const char *file) {
    pmlp__tensors f;
    pmlp__state state;
    float *scratch = NULL;
    size_t most = 0;
    int l, part;
    pmlp_result result =
        pmlp__tensors_read(&f, bytes, size, file, &t->desc.allocator, &t->error);
    memset(&state, 0, sizeof state);
    if (result == PMLP_OK) result = pmlp__trainer_fits(t, &f, &state);
    if (result == PMLP_OK) result = pmlp__same_activations(t, &f);
    for (l = 0; l < t->model->desc.layers; l++) {
        const size_t n = pmlp__part_count(t->model, l, 0) + pmlp__part_count(t->model, l, 1);
        if (n > most) most = n;
    }
    if (result == PMLP_OK) {
        scratch = (float *)pmlp__new(&t->desc.allocator, most, sizeof *scratch);
        if (!scratch) result = pmlp__no_memory(&t->error, "a layer's moments");
    }
    if (result == PMLP_OK) { /* from here on the trainer is changed */
        for (part = 0; result == PMLP_OK && part < f.parts; part += 2)
            result = pmlp__trainer_take(t, &f, part, scratch);
        if (result == PMLP_OK) pmlp__state_set(t, &state);
        else pmlp__trainer_lose(t, result);
        t->model->stale = result != PMLP_OK;
    }
    pmlp__delete(&t->desc.allocator, scratch);
    pmlp__tensors_close(&f);
    return result;
}

/* A file that rank 0 has read becomes all ranks'. */
static pmlp_result pmlp__share_file(pmlp_trainer *t, unsigned char **bytes, size_t *size) {
    const pmlp_group *group = t->group;
    uint64_t count = (uint64_t)*size;
    pmlp_result result = group->broadcast(group->context, 0, &count, sizeof count,
                                          t->desc.deadline);
    if (result != PMLP_OK) return pmlp__part(t, "sharing a file", result, &t->error);
    *size = (size_t)count;
    if (!*bytes) *bytes = (unsigned char *)pmlp__new(&t->desc.allocator, *size, 1);
    result = *bytes ? PMLP_OK : pmlp__no_memory(&t->error, "a file");
    result = pmlp__agree(t, result, NULL, &t->error);
    if (result != PMLP_OK) return result;
    result = group->broadcast(group->context, 0, *bytes, *size, t->desc.deadline);
    return result == PMLP_OK ? result : pmlp__part(t, "sharing a file", result, &t->error);
}

PMLP_API pmlp_result pmlp_trainer_load(pmlp_trainer *t, const char *path) {
    unsigned char *bytes = NULL;
    size_t size = 0;
    pmlp_result result = pmlp__enter(t);
    if (result != PMLP_OK) return result;
    result = pmlp__check_path(path, &t->error);
    if (result == PMLP_OK && (!t->group || t->group->rank == 0))
        result = pmlp__read_file(path, &t->desc.allocator, &bytes, &size, &t->error);
    result = pmlp__agree_on_call(t, "load", NULL, result);
    if (result == PMLP_OK && t->group) result = pmlp__share_file(t, &bytes, &size);
    if (result == PMLP_OK) result = pmlp__trainer_parse(t, bytes, size, pmlp__path_end(path));
    if (!pmlp__load(&t->failed)) result = pmlp__agree(t, result, NULL, &t->error);
    pmlp__delete(&t->desc.allocator, bytes);
    return pmlp__leave(t, result);
}

#endif /* PIPEMLP_IMPLEMENTATION */
