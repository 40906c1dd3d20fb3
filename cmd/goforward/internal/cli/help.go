package cli

// The texts of --help. A test parses every example.

const rootHelp = `goforward asks your router to forward a port to this host, so that the internet
reaches a program behind it.

  goforward map 8080          forward port 8080 to this host, for two hours
  goforward map 8080 --hold   the same, kept alive until Ctrl-C
  goforward unmap 8080        take it away
  goforward watch             follow what happens to the router
  goforward demo              watch it work, on a router made for the occasion

The router's part is half of the way: this host's own firewall must let the
connections in as well.

What was asked for goes to stdout, everything else to stderr.

Exit codes:
  0  done
  1  something else went wrong, or the gateway cannot do that
  2  the command line makes no sense; nothing was sent
  3  there is no gateway, or nothing on it answered
  4  the gateway refused: not allowed, no internet, no room, or another NAT before it
  5  somebody else has the port
  6  no reply from a gateway that was named, or that had answered before`

const mapHelp = `Map asks the gateway to forward a port to this host, and prints the external
endpoint: what to tell others. The mapping stays for its lifetime and is then
gone, unless you map again, or use --hold.

  8080            external port 8080, or another if the gateway will not, to 8080 here
  80:8080         external port 80 to 8080 here
  80:8080/udp     with a protocol: tcp, udp, both, or another's name or number
  6881 6881       public and private port, as natpmpc has them; public 0 is no wish
  (none)          a local port that is free just now

NAT-PMP maps TCP and UDP to this host, over IPv4, and always for a limited time.
--from, --to and --ipv6 take a gateway that speaks PCP or UPnP, and --lifetime forever
one of these; other protocols than TCP and UDP take PCP, or a firewall of IPv6. Some
accept --from and let everybody in all the same, and few map for another host.

With --hold the mapping is renewed in time, and asked for again when the gateway
restarts; each change is told on stderr, and the external endpoint is printed
again. Ctrl-C, SIGTERM or SIGHUP removes the mapping and exits with 0, or with 1 if
the gateway does not remove it. Another one, at least a second later, exits at once
with 1 and leaves the mapping for its lifetime. Under nohup, SIGHUP changes nothing.
If the first attempt fails, so does map: with --wait it keeps trying, also before there
is a network, and tells of each attempt.

With --exec, a command is run when the endpoint is known, and whenever it is another
than the command was last run for, also after it was lost in between; a loss alone runs
nothing. It is no shell's: words are apart by spaces, '…' and "…" hold one together,
and a backslash takes the meaning of what follows (in "…", of " and \ only). What it
prints goes to stderr. Its environment is that of goforward, and:

  GOFORWARD_EVENT           mapped, until the command succeeded once; then changed
  GOFORWARD_EXTERNAL_IP     the external address, or empty if the gateway does not tell
  GOFORWARD_EXTERNAL_PORT   what to tell others
  GOFORWARD_PREVIOUS_PORT   that of the last success; empty at first
  GOFORWARD_PROTOCOL        tcp, udp, both, or another's name
  GOFORWARD_INTERNAL_PORT   where to listen
  GOFORWARD_BACKEND         natpmp, pcp or upnp
  GOFORWARD_GATEWAY         its address

One runs at a time. After --exec-timeout it is killed, on Unix with all of its process
group. If it fails it is run again after a second, two, four and so on to a minute,
until it succeeds or there is another endpoint: then for that one only. At the end, one
that runs has two seconds left.

With --port-file, the external port is written to a file, as digits and a newline. A
regular file, or a missing one, is replaced as a whole, with mode 0644. A device, a
FIFO, the target of a symbolic link and a file that is a mount point are written in
place, and never replaced or removed; if no program reads the FIFO, goforward waits.
With --hold the file is written at each change of the port, and again, as --exec, if
that fails. It stays as it is while the mapping is lost. At the end a regular file is
removed, or emptied if it cannot be removed or is the target of a link, whether or not
the gateway removes the mapping; and at the start, if it has a port that an earlier run
left. A file that another program has written since stays.

With --json, stdout has an object on each line, one for each protocol: event is
mapped, changed, lost, restored, unmapped or error. An address that the gateway
does not tell is "", and a mapping without an end has no lifetime_s and expires.
previous is an external endpoint that is another now. An error with next_try is an
attempt of --hold that failed; one with exit is the end. exec and port_file tell of a
failure, and without error of the success after it.

Gateways of VPN providers speak NAT-PMP at an address that the provider tells, forward
one port of their choice for a minute at a time, the same inside and outside for TCP and
UDP, and another one after each reconnect. So tell the program where to listen:

  goforward map --same-port --protocol both --gateway 10.2.0.1 --lifetime 60 \
      --hold --wait --exec 'set-port.sh'     # which reads $GOFORWARD_EXTERNAL_PORT

This host's own firewall must let the connections in as well.`

const mapExamples = `  goforward map 8080
  goforward map 80:8080
  goforward map 27015/both --hold
  goforward map 443:8443 --exact --lifetime 24h
  goforward map -u -l 3600 -g 192.168.1.1 6881 6881   # the arguments of py-natpmp
  goforward map --same-port --hold --json             # one number for both, as torrents want it
  goforward map 8080 -6                               # IPv6: nothing but the firewall is in the way
  goforward map 8080/udp --from 198.51.100.7          # one peer only, where the gateway can
  goforward map 22 --to 192.168.1.9                   # for another host, where the gateway allows it
  goforward map 8080 --hold --wait                    # also before there is a network
  goforward map 8080 --hold --exec 'ddns-update --quiet'
  goforward map --same-port --hold --port-file /run/torrent/port
  goforward map --same-port --protocol both --gateway 10.2.0.1 --lifetime 60 --hold --wait --exec set-port.sh   # a VPN`

const unmapHelp = `Unmap takes a mapping away that an earlier map made, from this process or another,
by whichever protocol. It is found by the internal port: in 80:8080 that is 8080. It
takes the arguments and flags of map, and those that do not tell which mapping is
meant change nothing. With --same-port, name the internal port that map told.

Where the gateway tells its table, which takes UPnP, what leads to that port of this
host goes, whoever asked for it: with 80:8080, if the external port is 80, else all.
What leads to other hosts stays. With --foreign that goes as well: with --to, what leads
to that host, and else, whichever host it leads to, what has both the external and the
internal port. Many gateways refuse that.

A gateway gives up a mapping by PCP only to who knows its secret. That is derived from
a key that map keeps in a file of the user's, $XDG_STATE_HOME/goforward/nonce.key (by
default in ~/.local/state; on macOS and Windows where settings are): another user's
unmap is refused, and exits with 4. NAT-PMP has no secrets, and cannot tell two
programs on one host apart that mapped the same internal port: it is gone for both.

That there is no such mapping is success. With --json, backend has all the protocols
that were asked.`

const unmapExamples = `  goforward unmap 8080
  goforward unmap 80:8080/udp
  goforward unmap 27015/both
  goforward unmap 22 --to 192.168.1.9
  goforward unmap 22 --to 192.168.1.9 --foreign   # also if that host made it
  goforward unmap 80:8080 --foreign               # whichever host has it
  goforward unmap 8080 -6
  goforward unmap -u -g 192.168.1.1 6881 6881`

const listHelp = `List shows what the gateway forwards, whoever asked for it, by whichever protocol. It
asks by UPnP: neither NAT-PMP nor PCP has a way to ask that, and with a gateway that
speaks nothing else list says so and exits with 1.

  OURS       it leads to this host
  FROM       the only peer that is let in
  REMAINING  no end is also what gateways say that do not tell
  ENABLED    the gateway forwards it now

A table that breaks off is shown as far as it went, and the exit code tells.`

const listExamples = `  goforward list
  goforward list --json
  goforward list --igd-url http://192.168.1.1:5000/rootDesc.xml   # where searching finds nothing`

const ipHelp = `Ip asks the gateway for its external address and prints it: the address that the
internet sees this host as. Where that is a private one, another NAT stands before
the gateway; a line on stderr says so.

PCP has no question for it: a gateway that speaks nothing else is asked for a mapping,
which is taken away at once.`

const ipExamples = `  goforward ip
  goforward ip -g 192.168.1.1 --timeout 1
  goforward ip --json`

const gatewaysHelp = `Gateways shows every default route of this host, marks with * those that the kernel
uses for the internet, and asks each gateway, or the one that is named, what it speaks:
IPv6 ones not for NAT-PMP. They are asked at once, for two seconds at most, or for
--timeout. Nothing is mapped.

  yes       it answered
  no        it answered in another protocol
  refused   it has the port closed, or refuses
  silent    nothing came back
  -         it was not asked

The external address is what NAT-PMP or UPnP tells; PCP tells it only with a mapping,
for which see ip.

UPnP devices are searched for, with --igd-url not. Each that was found has a line of its
own: what it is, the service that forwards ports, the state of its connection to the
internet, and why it is used or another is. The * marks the one that is used.`

const gatewaysExamples = `  goforward gateways
  goforward gateways -g 192.168.1.1 --timeout 500ms
  goforward gateways --interface eth0 --json
  goforward gateways --igd-url http://192.168.1.1:5000/rootDesc.xml`

const watchHelp = `Watch tells of the gateway until Ctrl-C, SIGTERM or SIGHUP, which exit with 0: what it
speaks and its external address, then each time that

  restarted         it lost what it forwards, as its clock says
  announced         it says that it may have
  address changed   its external address is another
  gateway           the way out is: another gateway, interface or address of this host

What gateways announce is believed once they answer a question, and once a minute they
are asked for their address. Nothing is mapped, but by PCP to learn the address at the
start, and that is taken away at once. There has to be a gateway at the start; later it
and the network may go and come.

With --json, stdout has an object on each line: event is one of these words, with _ for
the space, address, or error where a gateway does not answer, with next_try.`

const watchExamples = `  goforward watch
  goforward watch --json
  goforward watch -g 192.168.1.1 --backend natpmp`

const demoHelp = `Demo starts a router of its own within this process, maps a port on it, sends bytes
through from an internet of its own, restarts the router, and takes all away again.

It needs no network and no rights, touches nothing outside of this host, and leaves
nothing behind. With --backend, the port is mapped by that protocol.`

const demoExamples = `  goforward demo
  goforward demo --backend upnp`
