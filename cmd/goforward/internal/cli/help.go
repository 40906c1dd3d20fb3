package cli

// The texts of --help. A test parses every example.

const rootHelp = `goforward asks your router to forward a port to this host, so that hosts on the
internet can reach a program behind the router.

  goforward map 8080          forward port 8080 to this host, for two hours
  goforward map 8080 --hold   the same, kept alive until Ctrl-C
  goforward unmap 8080        delete the mapping
  goforward watch             report restarts and changes of the router, until Ctrl-C
  goforward demo              show a mapping on a simulated router

A mapping on the router is not enough: this host's own firewall must let the
connections in as well.

Results go to stdout; all other messages go to stderr.

Exit codes:
  0  done
  1  another error, or the gateway does not support the request
  2  the command line is not valid; nothing was sent
  3  there is no gateway, or the gateway supports none of the protocols
  4  the gateway refused: it does not permit the mapping, its table is full, it has no
     connection to the internet, or it is behind another NAT
  5  the port is already in use by another mapping
  6  no reply from a gateway that was named, or that had replied before`

const mapHelp = `Map makes the gateway forward a port to this host, and prints the external
endpoint: the address and port to give to others. The mapping ends with its lifetime,
unless you map again or use --hold.

  8080            external port 8080 to port 8080 here, or another external port if
                  the gateway does not grant 8080
  80:8080         external port 80 to port 8080 here
  80:8080/udp     with a protocol: tcp, udp, both, or the name or number of another
  6881 6881       external and internal port, as with natpmpc; external port 0 means
                  any port
  (none)          an internal port that is free now

NAT-PMP maps TCP and UDP to this host, over IPv4, and always for a limited time.
--from, --to and --ipv6 need a gateway that supports PCP or UPnP, and so does
--lifetime forever. Protocols other than TCP and UDP need PCP, or an IPv6 firewall.
Some gateways accept --from and still admit all peers. Few gateways map for another
host.

With --hold, goforward renews the mapping before it expires, and requests it again when
the gateway restarts. It reports each change on stderr, and prints the external endpoint
again. Ctrl-C, SIGTERM or SIGHUP deletes the mapping and exits with 0, or with 1 if the
gateway does not delete it. A second signal, at least one second after the first, exits
with 1 at once; the mapping then ends with its lifetime. Under nohup, SIGHUP has no
effect. If the first attempt fails, map fails. With --wait, it reports each failed
attempt and tries again, so it can start before there is a network.

With --exec, goforward runs a command when the external endpoint is known, and each time
the endpoint differs from the one of the last run. This includes a change while the
mapping was lost. A loss alone does not run the command. No shell reads the command:
spaces separate words, '…' and "…" quote, and a backslash escapes the next character
(within "…", only " and \). The output of the command goes to stderr. The command gets
the environment of goforward, and these variables:

  GOFORWARD_EVENT           mapped until the command has succeeded once; then changed
  GOFORWARD_EXTERNAL_IP     the external address; empty if the gateway does not report it
  GOFORWARD_EXTERNAL_PORT   the port to give to others
  GOFORWARD_PREVIOUS_PORT   the external port of the last success; empty at first
  GOFORWARD_PROTOCOL        tcp, udp, both, or the name of another protocol
  GOFORWARD_INTERNAL_PORT   the port to listen on
  GOFORWARD_BACKEND         natpmp, pcp or upnp
  GOFORWARD_GATEWAY         the address of the gateway

One command runs at a time. After --exec-timeout it is killed, on Unix with its whole
process group. If it fails, it runs again after 1, 2, 4 and so on up to 60 seconds, until
it succeeds or the endpoint changes. When goforward exits, a running command has two
seconds to finish.

With --port-file, goforward writes the external port to a file, as digits and a newline.
It replaces a regular file, or creates a missing one, as a whole, with mode 0644. It
writes in place to a device, a FIFO, the target of a symbolic link, and a file that is a
mount point; it never replaces or removes these. If no program reads the FIFO, goforward
waits. With --hold, it writes the file each time the port changes, and tries again after
a failure, as with --exec. The file keeps its port while the mapping is lost. At the end
of --hold, goforward removes a regular file, or empties it if it cannot be removed or is
the target of a link. It does so even if the gateway does not delete the mapping. At the
start of --hold, it also removes a file with a port that an earlier run left. It keeps a
file that another program has written since. Without --hold, the file stays.

With --json, stdout has one object per line, and one object for each protocol. The field
event is mapped, changed, lost, restored, unmapped, error, exec or port_file. If the
gateway does not report its external address, the address is "". lifetime_s is the
lifetime in seconds; a permanent mapping has no lifetime_s and no expires. previous is
the external endpoint before a change. An error with next_try is a failed attempt of
--hold; an error with exit is the last object. The events exec and port_file report a
failure of --exec or --port-file; without error, they report the first success after a
failure.

Gateways of VPN providers support NAT-PMP at an address that the provider announces.
They choose the port, forward it for a minute at a time, and use the same number inside
and outside, for TCP and UDP. After each reconnect they choose another port, so pass the
port to the program that listens on it:

  goforward map --same-port --protocol both --gateway 10.2.0.1 --lifetime 60 \
      --hold --wait --exec 'set-port.sh'     # it reads $GOFORWARD_EXTERNAL_PORT

This host's own firewall must let the connections in as well.`

const mapExamples = `  goforward map 8080
  goforward map 80:8080
  goforward map 27015/both --hold
  goforward map 443:8443 --exact --lifetime 24h
  goforward map -u -l 3600 -g 192.168.1.1 6881 6881   # the arguments of py-natpmp
  goforward map --same-port --hold --json             # the same port inside and outside, for torrents
  goforward map 8080 -6                               # IPv6: opens the port in the firewall
  goforward map 8080/udp --from 198.51.100.7          # one peer only, if the gateway can
  goforward map 22 --to 192.168.1.9                   # for another host, if the gateway allows it
  goforward map 8080 --hold --wait                    # starts even before there is a network
  goforward map 8080 --hold --exec 'ddns-update --quiet'
  goforward map --same-port --hold --port-file /run/torrent/port
  goforward map --same-port --protocol both --gateway 10.2.0.1 --lifetime 60 --hold --wait --exec set-port.sh   # a VPN`

const unmapHelp = `Unmap deletes a mapping that goforward map created earlier, by any protocol. It finds
the mapping by the internal port: in 80:8080 that is 8080. Unmap accepts the arguments
and flags of map. Flags that do not select a mapping have no effect. For a mapping of
--same-port, name the internal port that map printed.

If the gateway lists its mappings, which needs UPnP, unmap deletes every mapping to that
port of this host, even if another program created it. With 80:8080, the external port
must also be 80. Mappings to other hosts stay. With --foreign, unmap deletes those too:
with --to, the mappings to that host; without --to, the mappings of any host with this
external and internal port. Many gateways refuse that.

Some gateways list the name of a host instead of its address. Unmap deletes such a
mapping only with --foreign and without --to; otherwise it names the mapping and exits
with 1. If the gateway does not list its mappings, or not all, unmap deletes only the
mapping with the named external port, which is by default the internal port. A remark
says so.

A gateway deletes a PCP mapping only for a client that has the secret of the mapping. The
secret is derived from a key that map keeps in a file of the user,
$XDG_STATE_HOME/goforward/nonce.key (by default in ~/.local/state; on macOS and Windows
in the directory for settings). If another user runs unmap, the gateway refuses, and
unmap exits with 4. NAT-PMP has no secrets. If two programs on one host map the same
internal port, unmap deletes the mapping for both.

If there is no such mapping, unmap succeeds. With --json, backend lists all protocols
that deleted the mapping or found none.`

const unmapExamples = `  goforward unmap 8080
  goforward unmap 80:8080/udp
  goforward unmap 27015/both
  goforward unmap 22 --to 192.168.1.9
  goforward unmap 22 --to 192.168.1.9 --foreign   # even if that host created it
  goforward unmap 80:8080 --foreign               # a mapping to any host
  goforward unmap 8080 -6
  goforward unmap -u -g 192.168.1.1 6881 6881`

const listHelp = `List shows all mappings of the gateway, for any host and by any protocol. It needs
UPnP: neither NAT-PMP nor PCP can list mappings. If the gateway does not support UPnP,
list exits with 1.

  OURS       the mapping forwards to this host
  FROM       the only peer that is admitted
  REMAINING  the remaining lifetime; "no end" also if the gateway does not report it
  ENABLED    the gateway forwards it now

If the table ends with an error, list prints the entries before it and exits with the
code of the error.`

const listExamples = `  goforward list
  goforward list --json
  goforward list --igd-url http://192.168.1.1:5000/rootDesc.xml   # if the search finds no device`

const ipHelp = `Ip requests the external address from the gateway and prints it: the address from which
this host's connections reach the internet. If this is a private address, there is
another NAT between the gateway and the internet; a line on stderr reports it.

PCP has no request for the address. If the gateway supports only PCP, ip creates a
mapping to learn the address, and deletes it at once.`

const ipExamples = `  goforward ip
  goforward ip -g 192.168.1.1 --timeout 1
  goforward ip --json`

const gatewaysHelp = `Gateways shows every default route of this host, and marks with * the routes that the
kernel uses for the internet. It tests which
protocols each gateway, or only the named one, supports. NAT-PMP is not tested on IPv6
gateways. All requests run at the same time, for at most three seconds, or for --timeout.
Nothing is mapped.

  yes       the gateway replied
  no        the gateway supports only other protocols, or only a UPnP device at
            another address replied
  refused   the port is closed, or the gateway refuses requests
  silent    no reply
  -         not tested

The external address comes from NAT-PMP or UPnP. PCP reports it only with a mapping; for
that, use ip.

Gateways searches for UPnP devices, unless --igd-url names one. Each device has its own
line: its name, the service that forwards ports, the state of its connection to the
internet, and why it is used or not. The device that is used has a *. A device at another
address is used only if the gateway is not named and supports no protocol itself.`

const gatewaysExamples = `  goforward gateways
  goforward gateways -g 192.168.1.1 --timeout 500ms
  goforward gateways --interface eth0 --json
  goforward gateways --igd-url http://192.168.1.1:5000/rootDesc.xml`

const watchHelp = `Watch observes the gateway until Ctrl-C, SIGTERM or SIGHUP, and then exits with 0. First it
prints the supported protocols and the external address. Then it prints one line for each
of these events, even if several protocols report it or the gateway repeats its announcement
for two minutes:

  restarted         the gateway lost its mappings, according to its clock
  announced         the gateway announced that it may have lost its mappings
  address changed   the external address changed
  gateway           the route changed: the gateway, the interface, or this host's address

Watch sends a request to confirm each announcement. It also requests the external
address once a minute. It creates no mappings, except with PCP: at the start, and after each
announcement if PCP is the only protocol, it creates one to learn the address, and deletes it
at once. There must be a gateway at the start; later, the gateway and the network may
disappear and return.

With --json, stdout has one object per line. The field event is one of the names above,
with _ for the space, or address, or error. An error has next_try: the gateway did not reply, and
watch tries again at that time.`

const watchExamples = `  goforward watch
  goforward watch --json
  goforward watch -g 192.168.1.1 --backend natpmp`

const demoHelp = `Demo starts a simulated router within this process, with a simulated internet. It maps
a port, sends data through it, restarts the router, and deletes the mapping.

It needs no network and no privileges. It changes nothing on this host or its network.
With --backend, it uses only that protocol.`

const demoExamples = `  goforward demo
  goforward demo --backend upnp`

const versionHelp = `Version prints the version, the revision and its date, the version of Go, and the
platform. A revision is recorded if the program was built from a clone of the
repository. "modified" means that the files differed from the revision.`

const versionExamples = `  goforward version
  goforward version --json`
