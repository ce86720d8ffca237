/* What no other test calls: a user's logger, names, descs read back; labels of pictures, those that
   are refused and those in any bytes; pictures of all sizes, and where they cannot be drawn or
   written.

       cc -std=c99 -I. tests/test_public.c -o test_public -pthread -lm                            */
#define _XOPEN_SOURCE 700 /* setrlimit */
#define PIPEMLP_IMPLEMENTATION
#include "../pipemlp.h"
#include "test.h"

#ifndef _WIN32
#  include <sys/resource.h>
#endif

typedef struct notes {
    int count[3];
    char last[512];
} notes;

static void note(pmlp_log_level level, const char *text, void *user) {
    notes *n = user;
    n->count[level]++;
    snprintf(n->last, sizeof n->last, "%s", text);
}

TEST(logger) {
    static const int sizes[] = {3, 5, 4, 2};
    notes n = {{0, 0, 0}, ""};
    pmlp_model_desc net = {0};
    pmlp_trainer_desc how = {0};
    pmlp_data data = {0};
    pmlp_model *model = NULL;
    pmlp_trainer *trainer = NULL;
    test_memory memory;
    net.layers = 3, net.sizes = sizes, net.hidden = PMLP_TANH, net.loss = PMLP_LOSS_MSE;
    CHECK(pmlp_model_create(&net, &model, NULL) == PMLP_OK, "no model");
    const pmlp_model_desc got = pmlp_model_query_desc(model), none = pmlp_model_query_desc(NULL);
    CHECK(got.layers == 3 && got.sizes[1] == 5 && got.hidden == PMLP_TANH && none.layers == 0,
          "the desc is another: %d layers", got.layers);
    CHECK(!strcmp(pmlp_loss_name(got.loss), "mse") && pmlp_loss_name((pmlp_loss)99) != NULL,
          "loss '%s'", pmlp_loss_name(got.loss));
    how.workers = 2, how.logger.log = note, how.logger.user = &n;
    CHECK(pmlp_trainer_create(model, &how, &trainer, NULL) == PMLP_OK, "no trainer");
    CHECK(n.count[PMLP_LOG_INFO] == 1 && n.count[PMLP_LOG_ERROR] == 0 && strlen(n.last) > 10,
          "%d infos, '%s'", n.count[PMLP_LOG_INFO], n.last);
    data.rows = 1;
    CHECK(pmlp_trainer_step(trainer, &data, NULL) == PMLP_ERROR_ARGUMENT, "a step without inputs");
    pmlp_trainer_destroy(trainer);
    test_memory_init(&memory, 9);
    how.allocator = memory.allocator, trainer = NULL;
    CHECK(pmlp_trainer_create(model, &how, &trainer, NULL) == PMLP_ERROR_MEMORY && !trainer &&
              memory.blocks == 0 && n.count[PMLP_LOG_ERROR] == 1 && strstr(n.last, "memory"),
          "%d errors, '%s'", n.count[PMLP_LOG_ERROR], n.last);
    pmlp_model_destroy(model);
    pmlp_log_stderr(PMLP_LOG_INFO, "a line on stderr, as it should be", NULL);
    SAY("a logger is told what is made and what fails; the model's desc and loss read back");
}

/* Weights begin uniform within the limit of their kind: by inputs, or by inputs and outputs. */
TEST(beginnings) {
    static const int sizes[] = {400, 100};
    static const struct {
        pmlp_init init;
        pmlp_activation activation;
        double fan;
    } cases[] = {{PMLP_INIT_DEFAULT, PMLP_RELU, 400},   {PMLP_INIT_DEFAULT, PMLP_GELU, 400},
                 {PMLP_INIT_DEFAULT, PMLP_TANH, 500},   {PMLP_INIT_DEFAULT, PMLP_SIGMOID, 500},
                 {PMLP_INIT_HE, PMLP_TANH, 400},        {PMLP_INIT_HE, PMLP_RELU, 400},
                 {PMLP_INIT_XAVIER, PMLP_RELU, 500},    {PMLP_INIT_XAVIER, PMLP_GELU, 500}};
    const int n = (int)(sizeof cases / sizeof *cases);
    for (int i = 0; i < n; i++) {
        const double limit = sqrt(6.0 / cases[i].fan);
        pmlp_model_desc net = {0};
        pmlp_model *model = NULL;
        pmlp_params p = {0};
        double most = 0, sum = 0;
        net.layers = 1, net.sizes = sizes, net.init = cases[i].init;
        net.output = cases[i].activation;
        CHECK(pmlp_model_create(&net, &model, NULL) == PMLP_OK &&
                  pmlp_model_params(model, 0, &p, NULL) == PMLP_OK,
              "no model");
        for (int k = 0; k < 40000; k++) {
            most = fabs((double)p.w[k]) > most ? fabs((double)p.w[k]) : most;
            sum += (double)p.w[k];
        }
        CHECK(most <= limit * 1.000001 && most > 0.999 * limit && fabs(sum / 40000) < limit / 50,
              "case %d: up to %g of %g, mean %g", i, most, limit, sum / 40000);
        for (int k = 0; k < 100; k++) CHECK(p.b[k] == 0, "bias %d is %g", k, (double)p.b[k]);
        pmlp_model_destroy(model);
    }
    SAY("%d ways to begin: uniform, as wide as they should be", n);
}

static pmlp_timeline *timeline_from(pmlp_schedule_desc desc) {
    pmlp_schedule *schedule = NULL;
    pmlp_timeline *timeline = NULL;
    pmlp_error error = {0};
    CHECK(pmlp_schedule_create(&desc, &schedule, &error) == PMLP_OK, "%s", error.text);
    CHECK(pmlp_schedule_timeline(schedule, desc.costs, &timeline, &error) == PMLP_OK, "%s",
          error.text);
    pmlp_schedule_destroy(schedule);
    return timeline;
}

static pmlp_timeline *timeline_of(int workers) {
    pmlp_schedule_desc desc = {0};
    desc.kind = PMLP_SCHEDULE_1F1B, desc.workers = workers, desc.microbatches = 4;
    return timeline_from(desc);
}

static void refuse(const pmlp_timeline *t, const pmlp_timeline *against, pmlp_picture picture,
                   const char *word) {
    pmlp_error error = {0};
    size_t length = 0;
    CHECK(pmlp_timeline_svg(t, against, &picture, NULL, 0, &length, &error) == PMLP_ERROR_ARGUMENT &&
              strstr(error.text, word),
          "'%s' lacks '%s'", error.text, word);
}

TEST(labels) {
    static const char *const names[] = {
        "plain", "\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80", /* of two, three and four bytes */
        "\xff\xc3(\xed\xa0\x80\xf5\x80\x80\x80", /* none of it is UTF-8 */
        "\x01\x1f\n", "<&\"'>", "a name that is far longer than any picture of it could be, ever"};
    pmlp_timeline *two = timeline_of(2), *three = timeline_of(3);
    pmlp_picture picture = {0};
    static char text[200000];
    size_t length = 0;
    int drawn = 0;
    picture.width = 100, refuse(two, NULL, picture, "width 100");
    picture.width = 0, picture.scale = -1, refuse(two, NULL, picture, "scale -1");
    picture.scale = 0, picture.width = 100001, refuse(two, NULL, picture, "width 100001");
    picture.width = 0, picture.scale = (double)INFINITY, refuse(two, NULL, picture, "scale inf");
    picture.scale = 1e200, refuse(two, NULL, picture, "1e+200");
    picture.scale = 1e-200, refuse(two, NULL, picture, "1e-200");
    picture.scale = 0, refuse(two, three, picture, "against: has 3 workers");
    refuse(NULL, NULL, picture, "timeline: is NULL");
    for (int i = 0; i < 6; i++, drawn++) {
        picture.title = picture.name = picture.against_name = names[i];
        picture.width = i % 2 ? 640 : 0;
        for (int held = 0; held < 2; held++) {
            CHECK(pmlp_timeline_svg(two, held ? two : NULL, &picture, text, sizeof text, &length,
                                    NULL) == PMLP_OK &&
                      strstr(text, "</svg>"),
                  "'%s': no picture", names[i]);
            for (const char *p = text; *p; p++)
                CHECK((unsigned char)*p >= 0x20 || *p == '\n', "a control character, %d", *p);
            CHECK(!strchr(text, '\xff') && !strstr(text, "\xed\xa0\x80"), "what is not UTF-8");
        }
    }
    pmlp_timeline_destroy(two);
    pmlp_timeline_destroy(three);
    SAY("%d labels in any bytes: pictures in UTF-8; 8 pictures refused, each with its reason",
        drawn);
}

static char text[400000];

/* Draws into `text`; what can be seen in any picture must be right. */
static void draw(const pmlp_timeline *t, const pmlp_timeline *against,
                 const pmlp_picture *picture) {
    pmlp_error error = {0};
    size_t length = 0;
    CHECK(pmlp_timeline_svg(t, against, picture, text, sizeof text, &length, &error) == PMLP_OK &&
              length == strlen(text) && strstr(text, "</svg>"),
          "no picture: %s", error.text);
    CHECK(!strstr(text, "nan") && !strstr(text, "\"inf") && !strstr(text, "\"-"),
          "no number, or one that is negative");
}

static void trace(const pmlp_timeline *t, const pmlp_timeline *against,
                  const pmlp_picture *picture) {
    pmlp_error error = {0};
    CHECK(pmlp_timeline_trace(t, against, picture, text, sizeof text, NULL, &error) == PMLP_OK,
          "no trace: %s", error.text);
}

static void shows(const char *what, const char *words, bool wanted) {
    CHECK((strstr(text, words) != NULL) == wanted, "%s: '%s' is %s", what, words,
          wanted ? "missing" : "there");
}

/* Workers with several stages: named beside their row, and in the bars that are wide enough. */
TEST(stages) {
    pmlp_schedule_desc desc = {0};
    pmlp_picture picture = {0};
    desc.kind = PMLP_SCHEDULE_LOOPED_BFS, desc.workers = 2, desc.microbatches = 4;
    for (desc.virtual_stages = 1; desc.virtual_stages <= 5; desc.virtual_stages++) {
        pmlp_timeline *t = timeline_from(desc);
        const int v = desc.virtual_stages;
        picture.width = 4000;
        draw(t, NULL, &picture);
        shows("one stage", ">stages ", v > 1);
        shows("two stages", ">stages 1, 3<", v == 2);
        shows("three or more", ">stages 1, 3 &#8230;<", v > 2);
        shows("bars", ">1:3</text>", v > 1);
        shows("the legend", "2:5 = stage 2, micro-batch 5", v > 1);
        shows("the legend", "paler: later stages", v > 1);
        shows("shades", "\"F3\"", v > 3);
        shows("shades", "\"F4\"", false);
        picture.width = 640;
        draw(t, NULL, &picture);
        if (v > 3) shows("narrow bars", ">1:3</text>", false);
        draw(t, t, &picture); /* no room for them beside two rows */
        shows("two timelines", ">stages ", false);
        pmlp_timeline_destroy(t);
    }
    desc.workers = desc.microbatches = 14, desc.virtual_stages = 2;
    pmlp_timeline *t = timeline_from(desc);
    draw(t, NULL, NULL); /* its rows are too low */
    shows("low rows", ">stages ", false);
    pmlp_timeline_destroy(t);
    SAY("workers of 1 to 5 stages: named beside the row, in bars with room, in the legend");
}

/* The y of the last entry that holds the words. */
static double height_of(const char *words) {
    const char *at = strstr(text, words), *y;
    for (y = at; y && y > text && strncmp(y, " y=\"", 4) != 0;) y--;
    return y && y > text ? atof(y + 4) : -1;
}

/* The more workers, the lower the rows, down to those that have no room for names or numbers. */
TEST(rows) {
    static const int workers[] = {2, 6, 7, 12, 13, 24, 25, 40};
    pmlp_picture picture = {0};
    double before = 0, height = 0;
    for (int i = 0; i < 8; i++) {
        pmlp_timeline *t = timeline_of(workers[i]);
        const bool named = workers[i] <= 24;
        picture.name = "this one", picture.against_name = "the other one";
        draw(t, t, &picture);
        shows("names", "this one above the other one", !named);
        draw(t, NULL, NULL);
        shows("no title", "<title>Timeline</title>", true);
        height = atof(strstr(text, "height=\"") + 8) / workers[i];
        CHECK(i == 0 || height < before, "%d workers: %g pixels each, before %g", workers[i],
              height, before);
        before = height;
        pmlp_timeline_destroy(t);
    }
    pmlp_schedule_desc desc = {0}; /* whose legend is long */
    desc.kind = PMLP_SCHEDULE_ZB_V, desc.workers = 2, desc.microbatches = 4;
    pmlp_timeline *t = timeline_from(desc);
    for (picture.width = 640; picture.width <= 1280; picture.width += 640) {
        draw(t, NULL, &picture);
        CHECK((height_of("number = ") > height_of(">forward<")) == (picture.width == 640),
              "%d wide: the legend begins at %g and ends at %g", picture.width,
              height_of(">forward<"), height_of("number = "));
    }
    pmlp_timeline_destroy(t);
    SAY("rows of 2 to 40 workers: ever lower, named where there is room, else in the legend");
}

/* Bars of a few pixels, of less than one, and of none. */
TEST(narrow) {
    static const int microbatches[] = {4, 40, 100, 400, 5000};
    pmlp_schedule_desc desc = {0};
    pmlp_picture picture = {0};
    desc.workers = 2, picture.width = 640;
    for (int i = 0; i < 5; i++) {
        desc.microbatches = microbatches[i];
        pmlp_timeline *t = timeline_from(desc);
        draw(t, NULL, &picture);
        shows("bars that share a path", "<path class=\"F0\"", microbatches[i] >= 100);
        shows("bars with tooltips", "F of micro-batch 3, ", microbatches[i] < 100);
        CHECK(strlen(text) < 100000, "%d micro-batches in %d bytes", microbatches[i],
              (int)strlen(text));
        pmlp_timeline_destroy(t);
    }
    desc.kind = PMLP_SCHEDULE_LOOPED_BFS, desc.virtual_stages = 2, desc.microbatches = 400;
    pmlp_timeline *t = timeline_from(desc);
    draw(t, NULL, &picture);
    shows("a path for each shade", "<path class=\"F1\"", true);
    pmlp_timeline_destroy(t);
    SAY("bars of a few pixels and of none: in one path, and a picture that does not grow");
}

/* Timelines of which nothing, or nearly nothing, is to be seen. */
TEST(no_time) {
    static const double nothing[4] = {0}, odd[4] = {1, 0, 1, 1}, huge[4] = {4e9, 4e9, 4e9, 4e9};
    static const double endless[4] = {1e18, 1e18, 1e18, 1e18};
    pmlp_picture picture = {0};
    pmlp_costs costs = {0};
    pmlp_schedule_desc desc = {0};
    desc.workers = 4, desc.microbatches = 12, desc.costs = &costs;
    costs.f = costs.i = costs.w = nothing;
    pmlp_timeline *none = timeline_from(desc);
    draw(none, NULL, NULL);
    shows("no time", "makespan 0", true);
    shows("no time", "class=\"grid\"", false);
    draw(none, none, NULL);
    shows("no time", "no difference", true);
    CHECK(pmlp_timeline_draw(none, 0, text, sizeof text, NULL, NULL) == PMLP_OK, "as text");
    shows("no cells", "worker 3  | |", true);
    costs.f = costs.i = odd;
    pmlp_timeline *some = timeline_from(desc);
    trace(some, some, NULL);
    shows("the free stage", "\"ph\":\"X\",\"pid\":1,\"tid\":2,\"ts\":0.000,\"dur\":0.000", false);
    shows("both", "\"pid\":2", true);
    shows("two names", "{\"name\":\"measured\"}", true);
    shows("two names", "{\"name\":\"simulated\"}", true);
    draw(some, none, NULL);
    shows("more", " more<", true);
    draw(none, some, NULL);
    shows("less", " less<", true);
    costs.held = endless;
    pmlp_timeline *full = timeline_from(desc);
    draw(full, NULL, NULL);
    shows("what is held", "4000000 T<", true); /* no larger unit */
    pmlp_timeline_destroy(full);
    picture.scale = 1e-6; /* spans of a nanosecond: an arrow cannot begin within one */
    trace(some, NULL, &picture);
    shows("an arrow", "{\"ph\":\"s\",\"pid\":1,\"tid\":3,\"ts\":0.001", true);
    costs.f = costs.i = costs.w = costs.held = huge;
    pmlp_timeline *long_one = timeline_from(desc);
    draw(long_one, NULL, NULL);
    shows("what is held", "16 G<", true);
    pmlp_timeline_destroy(none), pmlp_timeline_destroy(some), pmlp_timeline_destroy(long_one);
    SAY("timelines of no time, of one stage that takes none, of thousands of millions");
}

/* A caller's words in JSON, and those that are no UTF-8 or not allowed in XML. */
TEST(quoting) {
    static const struct {
        const char *bytes, *shown; /* inside <title> */
    } cases[] = {
        {"a", "a"}, {"\x7f", "?"}, {"\xc3\xa4", "\xc3\xa4"}, {"\xc3", "?"},
        {"\xe0\x9f\xbf", "???"}, {"\xe0\xa0\x80", "\xe0\xa0\x80"}, /* from U+0800 on */
        {"\xed\x9f\xbf", "\xed\x9f\xbf"}, {"\xed\xa0\x80", "???"}, /* surrogates */
        {"\xef\xbf\xbd", "\xef\xbf\xbd"}, {"\xef\xbf\xbe", "???"}, /* no characters */
        {"\xef\xbe\xbf", "\xef\xbe\xbf"},
        {"\xf0\x8f\xbf\xbf", "????"}, {"\xf0\x90\x80\x80", "\xf0\x90\x80\x80"},
        {"\xf4\x8f\xbf\xbf", "\xf4\x8f\xbf\xbf"}, {"\xf4\x90\x80\x80", "????"}, /* too large */
        {"\xf1\x80\x80\x80", "\xf1\x80\x80\x80"}, {"\xf8\x88\x80\x80", "????"},
        {"\"<&>'\\\t", "&#34;&#60;&#38;&#62;&#39;&#92; "}};
    const int n = (int)(sizeof cases / sizeof *cases);
    pmlp_timeline *t = timeline_of(2);
    pmlp_picture picture = {0};
    char wanted[100], longer[300];
    for (int i = 0; i < n; i++) {
        picture.title = cases[i].bytes;
        draw(t, NULL, &picture);
        snprintf(wanted, sizeof wanted, "\n<title>%s</title>", cases[i].shown);
        CHECK(strstr(text, wanted), "case %d", i);
    }
    memset(longer, 'x', sizeof longer); /* 200 are shown, the last an ellipsis */
    for (int size = 199; size <= 201; size++) {
        longer[size] = '\0', picture.title = longer;
        draw(t, NULL, &picture);
        shows("an ellipsis", "xxx\xe2\x80\xa6</title>", size > 200);
        longer[size] = 'x';
    }
    memcpy(longer + 197, "\xc3\xa4\xc3\xa4\xff", 6); /* 200 characters in 202 bytes */
    draw(t, NULL, &picture);
    shows("characters, not bytes", "x\xc3\xa4\xc3\xa4?</title>", true);
    picture.title = "the \"title\" \\ of it", picture.name = NULL;
    trace(t, NULL, &picture);
    shows("JSON", "{\"name\":\"the \\u0022title\\u0022 \\u005c of it\"}", true);
    picture.title = NULL;
    trace(t, NULL, &picture);
    shows("JSON", "{\"name\":\"pipeline\"}", true);
    picture.name = "its name";
    trace(t, NULL, &picture);
    shows("JSON", "{\"name\":\"its name\"}", true);
    draw(t, NULL, &picture);
    shows("the summary", ">its name: makespan ", true);
    pmlp_timeline_destroy(t);
    SAY("%d texts in XML, and some in JSON: quoted, cut by characters, what is none is a '?'", n);
}

/* What is done ahead of a message that is late; several W at once, as they are measured. */
TEST(measured) {
    static const int sizes[] = {3, 6, 4, 2};
    static const float x[64 * 3], targets[64 * 2];
    static const double two[] = {2, 2, 2}, one[] = {1, 1, 1};
    pmlp_costs costs = {0};
    pmlp_schedule_desc plan = {0};
    pmlp_model_desc net = {0};
    pmlp_trainer_desc how = {0};
    pmlp_data batch = {64, x, NULL, targets, false};
    pmlp_model *model = NULL;
    pmlp_trainer *trainer = NULL;
    pmlp_timeline *t = NULL;
    pmlp_error error = {0};
    plan.workers = 3, plan.microbatches = 12, costs.f = two, costs.ahead = one, plan.costs = &costs;
    t = timeline_from(plan);
    draw(t, NULL, NULL);
    shows("ahead", "<title>what can be done ahead of F of micro-batch 0, stage 1, ", true);
    pmlp_timeline_destroy(t);
    net.layers = 3, net.sizes = sizes, net.hidden = PMLP_TANH, net.loss = PMLP_LOSS_MSE;
    how.workers = 1, how.microbatches = 4, how.batch = 64, how.trace = 1; /* who never waits */
    how.keep_gradients = true, how.w_rows = 64;
    CHECK(pmlp_model_create(&net, &model, NULL) == PMLP_OK &&
              pmlp_trainer_create(model, &how, &trainer, &error) == PMLP_OK,
          "%s", error.text);
    CHECK(pmlp_trainer_step(trainer, &batch, NULL) == PMLP_OK &&
              pmlp_trainer_timeline(trainer, 1, &t) == PMLP_OK,
          "%s", pmlp_trainer_error(trainer)->text);
    trace(t, NULL, NULL);
    shows("four W at once", "\"name\":\"W0-3\",\"cat\":\"W\"", true);
    shows("four W at once", "\"microbatch\":0,\"count\":4}}", true);
    draw(t, NULL, NULL);
    shows("four W at once", "W of micro-batches 0 to 3, stage 0, ", true);
    shows("the legend", "0-3 = four at once", true);
    pmlp_timeline_destroy(t);
    pmlp_trainer_destroy(trainer);
    pmlp_model_destroy(model);
    SAY("what is done ahead, and W of several micro-batches at once, in tooltips and names");
}

/* Files that cannot be written, and memory that is lacking for what goes into them. */
TEST(files) {
    pmlp_timeline *t = timeline_of(2);
    pmlp_error error = {0};
    const char *path = "test_public.svg";
    pmlp_picture picture = {0};
    test_memory memory;
    picture.width = 1;
#define FAILS(call, want, thing)                                                               \
    CHECK((call) == want && error.result == want && strstr(error.text, thing),                 \
          "%s: \"%s\" does not say \"%s\"", #call, error.text, thing)
    FAILS(pmlp_timeline_write_svg(t, NULL, NULL, NULL, &error), PMLP_ERROR_ARGUMENT, "path: is");
    FAILS(pmlp_timeline_write_svg(t, NULL, &picture, path, &error), PMLP_ERROR_ARGUMENT, "width");
    FAILS(pmlp_timeline_write_trace(t, NULL, &picture, path, &error), PMLP_ERROR_ARGUMENT, "width");
    FAILS(pmlp_timeline_svg(t, NULL, NULL, NULL, 5, NULL, &error), PMLP_ERROR_ARGUMENT,
          "buffer: is NULL");
    FAILS(pmlp_timeline_write_svg(t, NULL, NULL, "no/such/folder.svg", &error), PMLP_ERROR_FILE,
          "folder.svg: cannot be opened for writing: No such file");
    pmlp_schedule_desc desc = {0};
    desc.workers = 2, test_memory_init(&memory, 0), desc.allocator = memory.allocator;
    pmlp_timeline *short_of = timeline_from(desc);
    const long blocks = memory.blocks;
    for (long k = 1;; k++) {
        memory.calls = 0, memory.fail_at = k;
        const pmlp_result result = pmlp_timeline_write_svg(short_of, short_of, NULL, path, &error);
        CHECK(memory.blocks == blocks, "%ld blocks leak", memory.blocks - blocks);
        if (result == PMLP_OK) {
            CHECK(k > 5, "only %ld failures", k - 1);
            break;
        }
        FAILS(result, PMLP_ERROR_MEMORY, "a picture");
        CHECK(remove(path) != 0, "a file in spite of the failure");
    }
    memory.fail_at = 0;
    CHECK(remove(path) == 0, "no file");
    pmlp_timeline_destroy(short_of);
    CHECK(memory.blocks == 0, "%ld blocks leak", memory.blocks);
#ifdef RLIMIT_FSIZE
    struct rlimit limit, lower;
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &limit);
    lower = limit, lower.rlim_cur = 1000; /* the disk is full after so many bytes */
    setrlimit(RLIMIT_FSIZE, &lower);
    const pmlp_result svg = pmlp_timeline_write_svg(t, NULL, NULL, path, &error);
    const pmlp_error first = error;
    const pmlp_result trace = pmlp_timeline_write_trace(t, NULL, NULL, path, &error);
    setrlimit(RLIMIT_FSIZE, &limit);
    CHECK(svg == PMLP_ERROR_FILE && strstr(first.text, "public.svg: cannot be written: File too"),
          "while writing: %s", first.text);
    CHECK(trace == PMLP_ERROR_FILE && strstr(error.text, "cannot be written: File too"),
          "while writing: %s", error.text);
    CHECK(remove(path) != 0, "what was written in part is there");
    pmlp_timeline *tiny = timeline_of(1); /* fits into the buffer, so that closing fails */
    lower.rlim_cur = 100;
    setrlimit(RLIMIT_FSIZE, &lower);
    const pmlp_result closing = pmlp_timeline_write_trace(tiny, NULL, NULL, path, &error);
    setrlimit(RLIMIT_FSIZE, &limit);
    FAILS(closing, PMLP_ERROR_FILE, "cannot be written: File too");
    CHECK(remove(path) != 0, "what was written in part is there");
    pmlp_timeline_destroy(tiny);
    FAILS(pmlp_timeline_write_svg(t, NULL, NULL, "/dev/full", &error), PMLP_ERROR_FILE, "No space");
    FILE *device = fopen("/dev/full", "r");
    CHECK(device != NULL, "a device was removed");
    if (device) fclose(device);
#endif
    pmlp_timeline_destroy(t);
    SAY("pictures that cannot be written, for want of a path, a folder, memory, room on the disk");
}

int main(void) {
    test_begin("public");
    RUN(logger);
    RUN(beginnings);
    RUN(labels);
    RUN(stages);
    RUN(rows);
    RUN(narrow);
    RUN(no_time);
    RUN(quoting);
    RUN(measured);
    RUN(files);
    return test_end();
}
