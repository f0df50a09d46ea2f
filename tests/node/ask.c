/* Look names up for ever, each after a pause, as programs do: by the C library. Usage: ask SECONDS NAME... */
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	const struct addrinfo hints = { .ai_socktype = SOCK_STREAM };

	setvbuf(stdout, NULL, _IOLBF, 0);
	for (int at = 2; argc > 2; at = at + 1 < argc ? at + 1 : 2) {
		struct addrinfo *found;
		int error = getaddrinfo(argv[at], NULL, &hints, &found);

		printf("%s %s\n", argv[at], error ? gai_strerror(error) : "ok");
		if (!error)
			freeaddrinfo(found);
		usleep((useconds_t)(atof(argv[1]) * 1e6));
	}
	return 2;
}
