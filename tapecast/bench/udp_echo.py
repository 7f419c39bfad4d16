"""What comes by UDP goes back as it is, from a process that sleeps until then. A reference.

`python -m tapecast.bench.udp_echo PORT`
"""

import socket
import sys

if __name__ == "__main__":
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as echo:
        echo.bind(("127.0.0.1", int(sys.argv[1])))
        while True:
            datagram, source = echo.recvfrom(2048)
            echo.sendto(datagram, source)
