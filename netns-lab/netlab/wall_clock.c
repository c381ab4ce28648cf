// SPDX-License-Identifier: Apache-2.0
//
// Preloaded into a program, it puts its wall clock AHEAD_S seconds ahead and leaves all else alone, as a machine does
// whose clock nobody has set. libfaketime is no help here: its monotonic sleeps fail.

#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static time_t ahead(void)
{
    const char *text = getenv("AHEAD_S");

    return text ? atoll(text) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int failure = (int)syscall(SYS_clock_gettime, clock, now);

    if (!failure && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += ahead();
    return failure;
}

int gettimeofday(struct timeval *now, void *zone)
{
    int failure = (int)syscall(SYS_gettimeofday, now, zone);

    if (!failure && now)
        now->tv_sec += ahead();
    return failure;
}

time_t time(time_t *told)
{
    struct timespec now = {};

    clock_gettime(CLOCK_REALTIME, &now);
    if (told)
        *told = now.tv_sec;
    return now.tv_sec;
}
