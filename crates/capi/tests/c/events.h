/* What a generation tells on its way, kept. */
#ifndef TIDEMILL_TESTS_EVENTS_H
#define TIDEMILL_TESTS_EVENTS_H

#include "model.h"

#define HEARD_ROOM 65536

struct heard {
    char text[HEARD_ROOM], thinking[HEARD_ROOM], call[HEARD_ROOM];
    size_t text_bytes, thinking_bytes, texts, calls, malformed, prompts;
    double done, total;
    /* Stops from this text on; 0 never does. */
    size_t stop_at;
};

static inline void heard_more(char *all, size_t *held, const char *data, size_t bytes) {
    CHECK(*held + bytes < HEARD_ROOM);
    if (bytes > 0) {
        memcpy(all + *held, data, bytes);
    }
    *held += bytes;
    all[*held] = '\0';
}

static inline int32_t hear(void *user, int32_t kind, const char *data, size_t bytes) {
    struct heard *heard = (struct heard *)user;
    size_t none = 0;
    char prompt[256];
    switch (kind) {
    case TIDEMILL_TEXT:
        heard_more(heard->text, &heard->text_bytes, data, bytes);
        heard->texts++;
        break;
    case TIDEMILL_THINKING:
        heard_more(heard->thinking, &heard->thinking_bytes, data, bytes);
        break;
    case TIDEMILL_TEXT_WAS_THINKING:
        heard_more(heard->thinking, &heard->thinking_bytes, heard->text, heard->text_bytes);
        heard->text_bytes = 0;
        heard->text[0] = '\0';
        break;
    case TIDEMILL_TOOL_CALL:
        heard_more(heard->call, &none, data, bytes);
        heard->calls++;
        break;
    case TIDEMILL_MALFORMED_TOOL_CALL:
        heard->malformed++;
        break;
    case TIDEMILL_PROMPT:
        CHECK(bytes < sizeof prompt);
        memcpy(prompt, data, bytes);
        prompt[bytes] = '\0';
        heard->done = json_number(json_member(prompt, "done_tokens"));
        heard->total = json_number(json_member(prompt, "total_tokens"));
        CHECK(heard->done >= 0 && heard->done <= heard->total);
        heard->prompts++;
        break;
    default:
        break;
    }
    return heard->stop_at > 0 && heard->texts >= heard->stop_at;
}

/* Whether the joined texts are the result's. */
static inline int heard_is(const struct heard *heard, const char *result) {
    char *text = json_text(json_member(result, "text"));
    char *thinking = json_text(json_member(result, "thinking"));
    int same = text != NULL && strcmp(text, heard->text) == 0 && strcmp(thinking ? thinking : "", heard->thinking) == 0;
    free(text);
    free(thinking);
    return same;
}

#endif
