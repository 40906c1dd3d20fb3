package cli

import (
	"slices"
	"strings"
)

// topic is a text of goforward help that belongs to no single command. Each of its lines that
// starts with "  goforward " is an example; a test parses it.
type topic struct {
	name     string
	aliases  []string
	short    string
	text     string
	commands []string // the help of these commands names the topic
}

var topics = []topic{
	{"ports", []string{"port"}, "How to name ports and protocols", portsHelp, []string{"map", "verify", "unmap", "run"}},
	{"hold", []string{"wait"}, "How --hold keeps a mapping alive", holdHelp, []string{"map", "run"}},
	{"exec", []string{"port-file"}, "How to pass the external port to other programs", execHelp, []string{"map", "watch"}},
	{"watch-exec", nil, "How watch runs a command for each event", watchExecHelp, []string{"watch"}},
	{"gateway", []string{"name", "names"}, "How the gateway is found, and how to name it", gatewayHelp, []string{"map", "gateways", "ip", "watch", "list"}},
	{"protocols", []string{"protocol", "pcp", "nat-pmp", "natpmp", "upnp"}, "What NAT-PMP, PCP and UPnP can do", protocolsHelp, []string{"map", "unmap", "gateways", "list"}},
	{"vpn", nil, "How to forward a port of a VPN provider", vpnHelp, []string{"map"}},
	{"deletion", []string{"delete"}, "Which mappings unmap deletes", deletionHelp, []string{"unmap"}},
	{"json", nil, "The objects that --json prints", jsonHelp, []string{"map", "unmap", "list", "ip", "gateways", "watch", "verify", "probe", "reflect", "version"}},
	{"exit-codes", []string{"exit", "exit-code"}, "The exit codes", exitCodesHelp, []string{"map", "verify", "unmap", "list", "ip", "gateways", "watch", "run", "probe", "reflect"}},
}

// findTopic returns the topic with that name or alias, or nil.
func findTopic(name string) *topic {
	i := slices.IndexFunc(topics, func(t topic) bool { return t.name == name || slices.Contains(t.aliases, name) })
	if i < 0 {
		return nil
	}
	return &topics[i]
}

func topicNames() (names []string) {
	for _, t := range topics {
		names = append(names, t.name)
	}
	return names
}

// seeAlso returns the names of the topics about a command.
func seeAlso(command string) string {
	var names []string
	for _, t := range topics {
		if slices.Contains(t.commands, command) {
			names = append(names, t.name)
		}
	}
	return strings.Join(names, " | ")
}

const portsHelp = `The internal port is the port on which the program on this host listens. The external port
is the port to give to others. Map, run -p, verify and unmap accept these forms:

  8080               external port 8080 to port 8080 here, or another external port if the
                     gateway does not grant 8080
  80:8080            external port 80 to port 8080 here
  80:8080/udp        with a protocol: tcp, udp, both, or the name or number of another
  ssh, https/tcp     the port of a service
  8000-8010          a range: a mapping for each port
  80-90:8080-8090    an external and an internal range of equal length
  80 443/tcp         several ports, with a protocol or a flag such as -p tcp
  6881 6881          two plain numbers: external and internal port, for an hour, as with
                     natpmpc and py-natpmp; external port 0 means any port
  (none)             an internal port that is free now; only for map

Without a protocol, the protocol is tcp. Instead of a suffix, -p NAME or -u names it. With
both, TCP and UDP get the same ports, or none is mapped. For several ports, map prints a
line, or an object, for each mapping. One --hold keeps all of them alive. The exit code is
the one of the most severe failure.

  --as-one        map a range as one unit: all ports or none, with the same offset
  --exact         fail if the gateway does not grant the external port
  --same-port     use the same number inside and outside, whichever the gateway grants:
                  programs such as torrent clients announce their internal port
  --to, --from    forward to another host; admit only one peer. Few gateways permit it.
  --ipv6          open the port in the gateway's IPv6 firewall; the port does not change
  --dry-run       find the gateway and say what would be requested, by which protocol

  goforward map 80 443/tcp 27015-27020/both --hold
  goforward map 80/tcp 443/tcp                        # two separate ports
  goforward map 80-90:8080-8090 --as-one
  goforward map -u -l 3600 -g 192.168.1.1 6881 6881   # the arguments of py-natpmp
  goforward map 8080/udp --from 198.51.100.7          # one peer only, if the gateway can
  goforward map 22 --to 192.168.1.9                   # for another host, if the gateway allows it

--lifetime is a number of seconds, a duration such as 90m, 2d, 1d12h or 1w, or forever. The
protocols count whole seconds: a fraction is rounded up. The default is two hours. A gateway
may grant a shorter lifetime; map prints it. Map also says what is proven: whether a program
listens on the port of this host. Goforward verify proves more.`

const holdHelp = `With --hold, goforward renews the mapping before it expires, and requests it again when
the gateway restarts. It reports each change on stderr, and prints the external endpoint
again on stdout. One --hold keeps all ports of the command line alive.

Ctrl-C, SIGTERM or SIGHUP deletes the mapping and exits with 0, or with 1 if the gateway
does not delete it. A second signal, at least one second after the first, exits with 1 at
once; the mapping then ends with its lifetime. Under nohup, SIGHUP has no effect.

If the first attempt fails, map fails. With --wait, it reports each failed attempt and tries
again, so it can start before there is a network. It also waits until the name of --gateway
has an address.

With --verify, goforward measures whether the port is reachable, after each grant and every ten
minutes or --every. It reports when the port is proven reachable, and when it is not reachable. A
mapping that was proven and fails is deleted and mapped again once.

At the end, goforward waits up to three seconds for a reply to the deletion, or as long as
--timeout says, and up to 15 seconds in all while the gateway replies. With --quiet, stderr
has only failures: lost mappings, failed attempts and failures of --exec and --port-file.

  goforward map 8080 --hold
  goforward map 8080 --hold --wait           # starts even before there is a network
  goforward map 8080 --hold --wait --quiet   # for a service`

const execHelp = `With --hold, other programs can learn the external port in two ways. Both follow each
change.

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

  goforward map 8080 --hold --exec 'ddns-update --quiet'
  goforward map --same-port --hold --port-file /run/torrent/port`

const gatewayHelp = `Without --gateway, the gateway is the one of the default route. The command gateways
shows it.

  -g, --gateway HOST[:PORT]   use this gateway. A host name is looked up once, before the
                              command runs, for at most five seconds or --timeout. The IPv4
                              address is preferred, and with --ipv6 the IPv6 address. If the
                              name has no address, the exit code is 3. PORT is the port of
                              NAT-PMP and PCP, by default 5351.
  --interface NAME            use the gateway of this interface, and send requests from it
  --source ADDR               send requests from this address of this host; mappings forward
                              to it
  --igd-url URL               use the UPnP device with this description, if the search does
                              not find it. Without --gateway, its host is the gateway. The
                              URL must have an IP address.
  --backend NAMES             use only these protocols, the preferred one first: natpmp (or
                              nat-pmp), pcp, upnp (or igd, upnp-igd)
  --timeout SECONDS           wait so long for the gateway, with discovery: seconds, also 0.5,
                              or a duration such as 500ms or 2m; at most 365d
  --fresh                     ignore which protocol the gateway supported in earlier runs

For each of the last 16 gateways, goforward records the protocol that it used, and the URL of
the UPnP device, in $XDG_STATE_HOME/goforward/gateways.json (by default in ~/.local/state; on
macOS in ~/Library/Application Support, on Windows in %LocalAppData%). The next run asks this
protocol first, and all others if the gateway does not reply at once. What a run with --backend
records applies only to runs with the same names. After a week, a run asks all protocols again.
Without such a directory, each run does, and the command gateways always. -v logs why the file
cannot be used.

The default timeout is 3 seconds for gateways, one minute for list and for unmap of several
ports, and else 15 seconds. If stderr is a terminal, a line says after one second what
goforward waits for.

  goforward gateways
  goforward map 8080 -g 192.168.1.1
  goforward map 8080 -g router.local
  goforward list --igd-url http://192.168.1.1:5000/rootDesc.xml
  goforward ip --backend nat-pmp --timeout 0.5`

const protocolsHelp = `Goforward uses the protocols that the gateway supports. The command gateways shows which
these are.

  NAT-PMP   maps TCP and UDP to this host, over IPv4, and always for a limited time
  PCP       maps every protocol, over IPv4 and IPv6
  UPnP      maps TCP and UDP over IPv4, opens ports in the IPv6 firewall, and lists all
            mappings of the gateway

--from, --to and --ipv6 need a gateway that supports PCP or UPnP, and so does --lifetime
forever. Protocols other than TCP and UDP need PCP, or an IPv6 firewall. Some gateways
accept --from and still admit all peers. Few gateways map for another host. Neither
NAT-PMP nor PCP can list mappings. PCP has no request for the external address.

A gateway deletes a PCP mapping only for a client that has the secret of the mapping. The
secret is derived from a key that map keeps in a file of the user,
$XDG_STATE_HOME/goforward/nonce.key (by default in ~/.local/state; on macOS and Windows
in the directory for settings). If another user runs unmap, the gateway refuses, and
unmap exits with 4. NAT-PMP has no secrets.

  goforward gateways
  goforward map 8080 --backend pcp
  goforward map 8080 --backend upnp,nat-pmp   # UPnP is preferred`

const vpnHelp = `Gateways of VPN providers support NAT-PMP at an address that the provider announces.
They choose the port, forward it for a minute at a time, and use the same number inside
and outside, for TCP and UDP. After each reconnect they choose another port, so pass the
port to the program that listens on it:

  goforward map --same-port --protocol both --gateway 10.2.0.1 --lifetime 60 \
      --hold --wait --exec 'set-port.sh'     # it reads $GOFORWARD_EXTERNAL_PORT

A program that reads its port from a file needs no command:

  goforward map --same-port --protocol both --gateway 10.2.0.1 --lifetime 60 \
      --hold --wait --port-file /run/torrent/port

With --wait, goforward can start before the VPN is connected. This host's own firewall, and
the firewall of the VPN program, must let the connections in as well.`

const deletionHelp = `Unmap finds a mapping by its internal port: in 80:8080 that is 8080.

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

If a running program of this user keeps the mapping alive, for example goforward map
--hold, unmap does not delete it and exits with 5. With --force, unmap deletes it for all
programs. Programs of other users, and those in a container, are not noticed: if they map
the same port of this host, unmap deletes the mapping for them too. Only the user who
created a PCP mapping can delete it: see goforward help protocols.

With --all, unmap deletes every listed mapping to this host, and also the NAT-PMP mappings
of this host that the gateway does not list, unless -p or -u names one protocol. No request
deletes all PCP mappings: without a list, name their ports.

  goforward unmap 22 --to 192.168.1.9
  goforward unmap 22 --to 192.168.1.9 --foreign   # even if that host created it
  goforward unmap 80:8080 --foreign               # a mapping to any host`

const jsonHelp = `With --json, stdout has one JSON object per line. Messages for people stay on stderr. This
is a summary: docs/json.md in the source code describes every field, and when it is present.
Ignore fields that you do not know: later versions add some, and rename none. The field
event names the kind of object:

  map          mapped, for each port and protocol
  map --hold   mapped, changed, lost, restored, unmapped, kept, error, exec, port_file, and
               with --verify verified and unreachable; kept replaces unmapped if another
               program keeps the mapping alive
  unmap        unmapped or dry_run, for each port and protocol; backend lists all backends
               that deleted the mapping or found none. Internal port 0 means all ports.
               With several ports, error for each that failed
  list         entry
  ip           ip
  gateways     gateway
  watch        gateway, address, restarted, announced, address_changed, exec, error
  verify       verified, for each port and measurement; also with map --verify
  probe        probing, then probed
  reflect      reflecting, reflected
  version      version

An object about a mapping has these fields:

  external, internal     objects with ip and port. If the gateway does not report its external
                         address, ip is "".
  protocol               tcp, udp, or the name or number of another protocol
  backend, gateway       which backend mapped it, and the address of the gateway
  lifetime_s, expires    the lifetime in seconds, and its end. A permanent mapping has
                         neither.
  scope                  the kind of the external address: public, private, shared (by the
                         NAT of the provider) or unknown
  previous               the external endpoint before a change
  reason, time           why and when it changed
  remote                 the only peer that is admitted
  description, enabled, ours   in a list

An object verified or unreachable has a verdict (reachable, unreachable or unknown), the level
that is proven (none, listening, lan, router or internet), a reason, and evidence of each method.

An object of gateways has the route, and protocols with an object for each protocol: speaks
is yes, no, refused or silent.

An object with event error and exit is the last one: the command failed. exit is the exit
code, error is the text, and kind is one of the names in goforward help exit-codes. An object
with event error and next_try is a failed attempt of --hold or watch, with its reason and
kind. The gateway did not reply or refused, and the next attempt is at that time.

The events exec and port_file report a failure of --exec or --port-file, with error and
next_try. Without error, they report the first success after a failure.

  goforward map 8080 --json
  goforward map 8080 --hold --json
  goforward gateways --interface eth0 --json`

const exitCodesHelp = `    0  done
    1  another error, or the gateway does not support the request
    2  the command line is not valid; nothing was sent to the gateway
    3  there is no gateway, the name of --gateway has no address, or the gateway supports none
       of the protocols
    4  the gateway refused: it does not permit the mapping, its table is full, it has no
       connection to the internet, or it is behind another NAT
    5  the port is already in use by another mapping, or unmap found a running program that
       keeps the mapping alive
    6  no reply from a gateway that was named, or that had replied before
    7  verify, map --verify: a port is not reachable; probe: the port refused, or did not reply
    8  verify, map --verify: no fault was found, but access from the internet is not proven
  129  SIGHUP interrupted the command before the mapping was granted
  130  SIGINT, as from Ctrl-C, interrupted it
  143  SIGTERM interrupted it

With --hold, a signal after the grant deletes the mapping, and the exit code is 0. For
several ports, the exit code is the one of the most severe failure. Run exits with the
status of its command: 127 if it is not found, 126 if it is not executable, and 128+n if
signal n killed it.

The kind in JSON is more precise:

    1  malformed, unsupported, not_unmapped (the gateway did not delete the mapping at the end
       of --hold), other
    2  usage
    3  no_gateway
    4  not_authorized, private_wan, no_resources, network_failure
    5  conflict
    6  no_reply
  129, 130, 143  interrupted`

const watchExecHelp = `With watch --exec, goforward runs a command for each printed event, except errors: one
command at a time, in the order of the events. No shell reads the command; its words, its
output, --exec-timeout and the end of goforward are as for map --exec. The command gets the
environment of goforward, and these variables:

  GOFORWARD_EVENT         gateway, address, restarted, announced or address_changed
  GOFORWARD_GATEWAY       the address of the gateway; empty if there is no route
  GOFORWARD_EXTERNAL_IP   the external address; empty if it is not known
  GOFORWARD_PREVIOUS_IP   the external address before this event, if it changed; or empty
  GOFORWARD_BACKEND       natpmp, pcp or upnp: the protocol that reported the event
  GOFORWARD_PROTOCOLS     the protocols of the gateway, as in natpmp,upnp; or empty
  GOFORWARD_REASON        the reason of the event, in one line; may be empty
  GOFORWARD_INTERFACE     the interface of the route; empty if it is not known
  GOFORWARD_LOCAL_IP      this host's address on the route; empty if it is not known

The events gateway and address come at the start, after each change of the route, and after
each loss. When the route changes, there are two events gateway: the first without the
protocols, the second with them if the gateway replies. If the command fails, watch reports
it and does not run it again for this event; it runs for the next one. At most 64 events wait
for the command. If there are more, the oldest is dropped, and watch reports that.`
