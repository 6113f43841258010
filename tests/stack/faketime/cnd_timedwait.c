/* Lets libfaketime reach librdkafka. It shifts pthread_cond_timedwait but not C11's cnd_timedwait, which librdkafka
   uses: deadlines reckoned by the shifted clock would be waited for by the right one, and a client an hour behind would
   never wait at all. Preloaded after libfaketime, this sends the one to the other. */
#include <errno.h>
#include <pthread.h>
#include <threads.h>
#include <time.h>

int cnd_timedwait(cnd_t *condition, mtx_t *mutex, const struct timespec *until) {
  /* glibc's C11 types are its POSIX types under other names. */
  int result = pthread_cond_timedwait((pthread_cond_t *)condition, (pthread_mutex_t *)mutex, until);
  return result == 0 ? thrd_success : result == ETIMEDOUT ? thrd_timedout : thrd_error;
}
