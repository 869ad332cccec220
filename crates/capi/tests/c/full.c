/* A disk that takes no more: the older file stays. full MODEL SCRATCH */
#define _DEFAULT_SOURCE

#include <signal.h>
#include <sys/resource.h>

#include "model.h"

int main(int argc, char **argv) {
    static const uint32_t first[] = {11, 12, 13}, more[] = {14, 15};
    tidemill_model *model;
    tidemill_session *session, *other;
    struct rlimit limit;
    char path[4096], *error;
    uint32_t tokens[8];
    size_t count = 0;
    CHECK(argc >= 3);
    snprintf(path, sizeof path, "%s/full.state", argv[2]);
    model = open_model(argv[1], OPTIONS);
    session = new_session(model);
    other = new_session(model);
    OK(tidemill_session_sync(session, first, 3, NULL, NULL, NULL, NULL, &error));
    OK(tidemill_session_save(session, path, &error));
    OK(tidemill_session_append(session, more, 2, NULL, NULL, NULL, &error));
    /* From here on no file of this process grows beyond 4 KiB, as on a disk that is nearly full. */
    signal(SIGXFSZ, SIG_IGN);
    CHECK(getrlimit(RLIMIT_FSIZE, &limit) == 0);
    limit.rlim_cur = 4096;
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    SAYS(TIDEMILL_IO, "full.state", tidemill_session_save(session, path, &error));
    OK(tidemill_session_load(other, path, &error));
    OK(tidemill_session_tokens(other, tokens, 8, &count, &error));
    CHECK(count == 3 && tokens[0] == 11 && tokens[2] == 13);
    CHECK(tidemill_session_length(session) == 5);
    tidemill_session_free(other);
    tidemill_session_free(session);
    tidemill_model_free(model);
    return 0;
}
