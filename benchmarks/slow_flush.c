/* A disk that takes a millisecond longer for each flush, for the server that this is preloaded into. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>

int fdatasync(int fd) {
    static int (*flush)(int);
    struct timespec longer = {0, 1000000};
    if (!flush) flush = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    nanosleep(&longer, 0);
    return flush(fd);
}
