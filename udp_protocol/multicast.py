"""UDP multicast sockets (provisional)."""
import select, socket, struct, errno
from collections import Counter
def group_address(prefix, channel): return f"{prefix}.{channel}"
class GroupSender:
    def __init__(self, interface, ttl=0, loop=True):
        s=self._s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.setblocking(False)
        s.setsockopt(socket.IPPROTO_IP,socket.IP_MULTICAST_IF,socket.inet_aton(interface))
        s.setsockopt(socket.IPPROTO_IP,socket.IP_MULTICAST_TTL,ttl); s.bind((interface,0))
        self.counters=Counter(); self.port=s.getsockname()[1]
    def send(self, view, address):
        try: self._s.sendto(view,address)
        except OSError as e: self.counters['send_drop']+=1
    def close(self): self._s.close()
class GroupReceiver:
    def __init__(self, groups, port, interface, rcvbuf=64<<20):
        self._p=select.epoll(); self._m={}; self.drops=0
        for c,g in groups.items():
            s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEADDR,1)
            s.bind((g,port)); s.setblocking(False)
            s.setsockopt(socket.SOL_SOCKET,33,rcvbuf); self.rcvbuf_bytes=s.getsockopt(socket.SOL_SOCKET,socket.SO_RCVBUF)
            s.setsockopt(socket.IPPROTO_IP,socket.IP_ADD_MEMBERSHIP,socket.inet_aton(g)+socket.inet_aton(interface))
            self._m[s.fileno()]=(c,s); self._p.register(s.fileno(),select.EPOLLIN)
    def receive(self, limit, timeout_s):
        out=[]
        for fd,_ in self._p.poll(timeout_s):
            c,s=self._m[fd]
            try:
                while len(out)<limit:
                    d,a=s.recvfrom(2048); out.append((c,d,a[0]))
            except BlockingIOError: pass
        return out
    def close(self):
        for _,s in self._m.values(): s.close()
        self._p.close()
class FenceListener(GroupReceiver):
    def __init__(self, groups, port, interface, own): super().__init__(groups,port,interface,1<<20)
