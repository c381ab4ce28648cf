// SPDX-License-Identifier: Apache-2.0
//
// What each of the programs here needs: the clock they measure by, and the end of one that cannot go on.

#pragma once

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static inline double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

static inline void fail(const char *what)
{
    perror(what);
    exit(1);
}
