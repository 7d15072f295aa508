/*
 * Runs the ClickHouse server out of its shared library.
 *
 * The npm package ships the whole server as libchdb.so. Its entry point takes the arguments of `clickhouse local` and
 * blocks until the query ends; the caller passes a query that opens the listeners and then sleeps. A wrong argument
 * is only told in the result, so the message is printed here.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct local_result_v2 {
    char *buf;
    size_t len;
    void *vec;
    double elapsed;
    uint64_t rows_read;
    uint64_t bytes_read;
    char *error_message;
};

struct local_result_v2 *query_stable_v2(int argc, char **argv);

int main(int argc, char **argv) {
    argv[0] = "clickhouse";
    struct local_result_v2 *result = query_stable_v2(argc, argv);
    if (result == NULL) {
        fprintf(stderr, "clickhouse ended without a result\n");
        return 1;
    }
    if (result->error_message != NULL) {
        fprintf(stderr, "%s\n", result->error_message);
        return 1;
    }
    return 0;
}
