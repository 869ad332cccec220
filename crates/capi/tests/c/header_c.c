/* The header stands alone, may come twice, and says the numbers that programs were built with. */
#include <tidemill.h>
#include <tidemill.h>

#define SAME(name, what) typedef char check_##name[(what) ? 1 : -1]

SAME(abi, TIDEMILL_ABI_VERSION == 1);
SAME(status, sizeof(tidemill_status) == 4 && (tidemill_status)-1 < 0);
SAME(ok, TIDEMILL_OK == 0);
SAME(internal, TIDEMILL_INTERNAL == 1);
SAME(invalid_request, TIDEMILL_INVALID_REQUEST == 2);
SAME(not_found, TIDEMILL_NOT_FOUND == 3);
SAME(corrupt, TIDEMILL_CORRUPT == 4);
SAME(unsupported, TIDEMILL_UNSUPPORTED == 5);
SAME(io, TIDEMILL_IO == 6);
SAME(memory, TIDEMILL_MEMORY == 7);
SAME(context_full, TIDEMILL_CONTEXT_FULL == 8);
SAME(device, TIDEMILL_DEVICE == 9);
SAME(busy, TIDEMILL_BUSY == 10);
SAME(too_small, TIDEMILL_TOO_SMALL == 11);
SAME(cancelled, TIDEMILL_CANCELLED == 130);
SAME(text, TIDEMILL_TEXT == 1);
SAME(thinking, TIDEMILL_THINKING == 2);
SAME(tool_call, TIDEMILL_TOOL_CALL == 3);
SAME(malformed_tool_call, TIDEMILL_MALFORMED_TOOL_CALL == 4);
SAME(prompt, TIDEMILL_PROMPT == 5);
SAME(text_was_thinking, TIDEMILL_TEXT_WAS_THINKING == 6);
SAME(document, TIDEMILL_TOKENIZE_DOCUMENT == 1);
SAME(specials, TIDEMILL_TOKENIZE_SPECIALS == 2);
SAME(shown, TIDEMILL_DETOKENIZE_SPECIALS == 1);

/* The types of what programs hand over and keep: a change of one does not compile. */
static int32_t progress(void *user, double done, double total) {
    (void)user;
    return done > total;
}

static int32_t on_event(void *user, int32_t kind, const char *data, size_t bytes) {
    (void)user;
    (void)kind;
    return data != NULL && bytes > 0;
}

static int32_t on_result(void *user, size_t index, tidemill_status status, const char *result_json) {
    (void)user;
    (void)index;
    return status == TIDEMILL_OK && result_json != NULL;
}

int main(void) {
    tidemill_progress first = progress;
    tidemill_on_event second = on_event;
    tidemill_on_result third = on_result;
    tidemill_model *model = NULL;
    tidemill_session *session = NULL;
    tidemill_sampler *sampler = NULL;
    tidemill_cancel *cancel = NULL;
    int are_none = model == NULL && session == NULL && sampler == NULL && cancel == NULL;
    uint32_t (*abi)(void) = tidemill_abi_version;
    return are_none && first(NULL, 0, 1) == 0 && second(NULL, 0, NULL, 0) == 0 && third(NULL, 0, 1, NULL) == 0 &&
                   abi() == TIDEMILL_ABI_VERSION
               ? 0
               : 1;
}
