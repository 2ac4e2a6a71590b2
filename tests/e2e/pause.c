/* The first process of a pod: holds its namespaces, buries orphans, and leaves when told to. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void bury(int number)
{
    (void)number;
    while (waitpid(-1, 0, WNOHANG) > 0) {
    }
}

static void leave(int number)
{
    (void)number;
    _exit(0);
}

int main(void)
{
    signal(SIGCHLD, bury);
    signal(SIGINT, leave);
    signal(SIGTERM, leave);
    for (;;)
        pause();
}
