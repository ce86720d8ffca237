/* What no other test calls: a user's logger, names, descs read back; labels of pictures, those that
   are refused and those in any bytes.

       cc -std=c99 -I. tests/test_public.c -o test_public -pthread -lm                            */
#define PIPEMLP_IMPLEMENTATION
#include "../pipemlp.h"
#include "test.h"

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

static pmlp_timeline *timeline_of(int workers) {
    pmlp_schedule_desc desc = {0};
    pmlp_schedule *schedule = NULL;
    pmlp_timeline *timeline = NULL;
    desc.kind = PMLP_SCHEDULE_1F1B, desc.workers = workers, desc.microbatches = 4;
    CHECK(pmlp_schedule_create(&desc, &schedule, NULL) == PMLP_OK, "no schedule");
    CHECK(pmlp_schedule_timeline(schedule, NULL, &timeline, NULL) == PMLP_OK, "no timeline");
    pmlp_schedule_destroy(schedule);
    return timeline;
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
    picture.scale = 1e200, refuse(two, NULL, picture, "1e+200");
    picture.scale = 0, refuse(two, three, picture, "against: has 3 workers");
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
    SAY("%d labels in any bytes: pictures in UTF-8; 4 pictures refused, each with its reason", drawn);
}

int main(void) {
    test_begin("public");
    RUN(logger);
    RUN(labels);
    return test_end();
}
