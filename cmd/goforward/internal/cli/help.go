package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// helpWidth is the number of columns that no line of the help exceeds.
const helpWidth = 100

// helpCommand returns the command that prints the help of a command or topic.
func (a *app) helpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:                   "help [COMMAND | TOPIC]",
		Short:                 "Print the help of a command or topic",
		Long:                  helpHelp,
		Example:               helpExamples,
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     completeHelp,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 1 && findTopic(args[0]) != nil {
				return nil
			}
			if _, rest, err := root.Find(args); err != nil || len(rest) > 0 {
				return usagef("no command or help topic %q: the topics are %s", strings.Join(args, " "), joinNames(topicNames()))
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 1 {
				if t := findTopic(args[0]); t != nil {
					_, err := fmt.Fprintln(a.stdout, t.text)
					return err
				}
			}
			cmd, _, err := root.Find(args)
			if err != nil {
				return err
			}
			cmd.InitDefaultHelpFlag() // to show the flag
			return cmd.Help()
		},
	}
}

// completeHelp completes the names of commands and topics.
func completeHelp(cmd *cobra.Command, args []string, prefix string) (names []cobra.Completion, _ cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	for _, c := range cmd.Root().Commands() {
		if c.IsAvailableCommand() && strings.HasPrefix(c.Name(), prefix) {
			names = append(names, cobra.CompletionWithDesc(c.Name(), c.Short))
		}
	}
	for _, t := range topics {
		if strings.HasPrefix(t.name, prefix) {
			names = append(names, cobra.CompletionWithDesc(t.name, t.short))
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// printUsage prints the part of the help of a command that follows its description. It does not
// use a template: with text/template, the linker keeps every method of every type.
func printUsage(cmd *cobra.Command) error {
	var b strings.Builder
	section := func(title, text string) {
		if text = strings.TrimRight(text, " \n"); text != "" {
			fmt.Fprintf(&b, "\n%s:\n%s\n", title, text)
		}
	}
	line := cmd.UseLine()
	if cmd.HasAvailableSubCommands() {
		line = cmd.CommandPath() + " COMMAND [flags]"
	}
	section("Usage", "  "+line)
	section("Examples", cmd.Example)
	if names := seeAlso(cmd.Name()); names != "" {
		section("See also", "  goforward help "+names)
	}
	section("Commands", commandList(cmd))
	if !cmd.HasParent() {
		section("Help topics, for goforward help TOPIC", topicList())
	}
	if cmd.Name() != "demo" { // it takes no flag except --backend
		section("Flags", cmd.LocalFlags().FlagUsagesWrapped(helpWidth))
	}
	if usesGateway(cmd) {
		section("Flags of all commands, which goforward --help describes", sharedFlags(cmd.InheritedFlags()))
	}
	_, err := fmt.Fprint(cmd.OutOrStderr(), strings.TrimPrefix(b.String(), "\n"))
	return err
}

// sharedFlags returns the names of the flags that all commands share.
func sharedFlags(flags *pflag.FlagSet) string {
	line, lines := "", ""
	flags.SortFlags = false
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		if len(line)+2+len(name) > helpWidth {
			line, lines = "", lines+line+"\n"
		}
		line += "  " + name
	})
	return lines + line
}

// commandList returns a line for each command.
func commandList(cmd *cobra.Command) string {
	var b strings.Builder
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			fmt.Fprintf(&b, "  %-11s  %s\n", c.Name(), c.Short)
		}
	}
	return b.String()
}

// topicList returns a line for each topic.
func topicList() string {
	var b strings.Builder
	for _, t := range topics {
		fmt.Fprintf(&b, "  %-11s  %s\n", t.name, t.short)
	}
	return b.String()
}

// The texts of --help. A test parses every example.

const helpHelp = `Help prints the help of a command or of a topic. Without an argument, it lists the
commands and the topics.`

const helpExamples = `  goforward help
  goforward help map
  goforward help ports`

const rootHelp = `goforward asks your router to forward a port to this host, so that hosts on the
internet can reach a program behind the router.

  goforward map 8080                  forward port 8080 to this host, for two hours
  goforward map 8080 --hold           the same, kept alive until Ctrl-C
  goforward run -p 8080 -- ./server   the same, while ./server runs
  goforward verify 8080               measure whether the port is reachable
  goforward unmap 8080                delete the mapping
  goforward watch                     report restarts and changes of the router
  goforward demo                      show a mapping on a simulated router

A mapping on the router is not enough: this host's own firewall must let the
connections in as well.

Results go to stdout; all other messages go to stderr.`

const mapHelp = `Map makes the gateway forward ports to this host, and prints each external endpoint: the
address and port to give to others. The mapping ends with its lifetime, unless you map
again or use --hold. This host's own firewall must let the connections in as well.`

const mapExamples = `  goforward map 8080                           # for two hours
  goforward map 8080 --hold                    # until Ctrl-C, then delete it
  goforward map 8080 --hold --wait             # starts even before there is a network
  goforward map 80:8080                        # external port 80 to port 8080 here
  goforward map 80 443/tcp 27015-27020/both    # several ports and ranges, TCP and UDP
  goforward map 443:8443 --exact --lifetime 2d # this external port or none
  goforward map 8080 --verify                  # and measure whether it is reachable
  goforward map 8080 --dry-run                 # only say what would be requested
  goforward map --same-port --hold --json      # the same port inside and outside, for torrents
  goforward map 8080 -6                        # IPv6: opens the port in the firewall
  goforward map 8080 -g router.local           # on this router
  goforward map 8080 --hold --exec 'ddns-update --quiet'`

const verifyHelp = `Verify measures how far connections to a forwarded port get, prints each piece of evidence,
and then the verdict: reachable, unreachable or unknown. Reachable means that a connection
from the internet arrived at this host. Nothing else counts as a proof of that.

If the gateway's table has an entry for the port of this host, verify measures this entry and
changes nothing. Otherwise it requests the mapping as map does, and deletes it at the end. If
the gateway does not list its mappings, the mapping stays until its lifetime ends, because it
may have existed before.

Without --via, only the router is contacted: does a program listen, can the router connect to
this host, and does it forward the port? Access from the internet needs one of these:

  --via URL        a reflector: https://HOST or http://HOST:PORT of a host of yours that runs
                   goforward reflect. Its token, if it has one, is in GOFORWARD_REFLECTOR_TOKEN.
  --via ssh:HOST   a host on which you have an account, with goforward or bash
  --via stun:HOST  a STUN server that supports RFC 5780; only for UDP
  --via if:NAME    another interface of this host that leads to the internet, such as a modem
  --via phone      a URL to open on a phone without Wi-Fi. It needs a TCP port that no
                   program uses during the measurement.

What a helper says proves nothing: only what arrives at this host counts.

With --every, verify measures again and prints each change of the verdict. If a port that was
reachable is not reachable any more, verify deletes the mapping and maps it again once. The exit
code is 0 for reachable, 7 for unreachable and 8 for unknown; of several ports, the worst.`

const verifyExamples = `  goforward verify 8080
  goforward verify 27015/udp                  # a UDP port
  goforward verify 80:8080 443                # several ports
  goforward verify 8080 --via phone           # with a phone that does not use the Wi-Fi
  goforward verify 8080 --via if:wwan0        # through the modem of this host
  goforward verify 8080 --via ssh:vps         # from a host with a shell
  goforward verify 8080 --via https://reflector.example.net --every 10m
  goforward verify 8080 --json`

const runHelp = `Run maps one or more ports, runs a command, and deletes the mappings when the command
ends. It exits with the exit status of the command.

The command gets the terminal, and the signals that goforward receives; in the foreground of a
terminal, SIGINT and SIGQUIT only from the keyboard. If goforward is killed with SIGKILL, the
command continues, and the mappings end with their lifetime. The arguments and the
environment of the command name the external endpoint:

  {ip}     GOFORWARD_EXTERNAL_IP      the external address
  {port}   GOFORWARD_EXTERNAL_PORT    the external port of the first -p
  {port2}  GOFORWARD_EXTERNAL_PORT2   of the second -p, and so on

If a port cannot be mapped, the command does not run. With --wait, run tries again until it
can. If the external endpoint changes later, the command continues; with
--restart-on-change, run ends it and starts it again with the new endpoint.

If the command is not found, run exits with 127; if it is not executable, with 126; if signal
n killed it, with 128+n.`

const runExamples = `  goforward run -p 8080 -- ./server
  goforward run -p 8080 --wait -- ./server --public-address {ip}:{port}
  goforward run -p 27015/udp -p 27016 -- ./game --port {port} --query-port {port2}
  goforward run -p 6881/both --restart-on-change -- torrent-client --port {port}`

const unmapHelp = `Unmap deletes mappings that goforward map created earlier, by any protocol. It finds
the mapping by the internal port: in 80:8080 that is 8080. Unmap accepts the arguments
and flags of map. Flags that do not select a mapping have no effect. For a mapping of
--same-port, name the internal port that map printed. If there is no such mapping, unmap
succeeds.

With --all, unmap deletes all mappings to this host that list shows as ours, and those that
NAT-PMP created. If another running program keeps a mapping alive, unmap does not delete
it, unless --force is given. With --dry-run, unmap only says which mappings it would delete.

Mappings to other hosts stay, unless --foreign is given. Only the user who created a PCP
mapping can delete it. For details, see goforward help deletion.`

const unmapExamples = `  goforward unmap 8080
  goforward unmap 80:8080/udp
  goforward unmap 80 443/tcp 27015-27020/both
  goforward unmap --all                           # all mappings to this host
  goforward unmap 8080 --dry-run                  # only say what would be deleted
  goforward unmap 8080 --force                    # although another program keeps it alive
  goforward unmap 22 --to 192.168.1.9 --foreign   # even if that host created it
  goforward unmap 80:8080 --foreign               # a mapping to any host
  goforward unmap 8080 -6
  goforward unmap -u -g 192.168.1.1 6881 6881`

const listHelp = `List shows all mappings of the gateway, for any host and by any protocol. It needs
UPnP: neither NAT-PMP nor PCP can list mappings. If the gateway does not support UPnP,
list exits with 1.

With --ours, list shows only the mappings that forward to this host.

  OURS       the mapping forwards to this host
  FROM       the only peer that is admitted
  REMAINING  the remaining lifetime; "no end" also if the gateway does not report it
  ENABLED    the gateway forwards it now

If the table ends with an error, list prints the entries before it and exits with the
code of the error.`

const listExamples = `  goforward list
  goforward list --ours
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
kernel uses for the internet. It tests which protocols each gateway, or only the named one,
supports. NAT-PMP is not tested on IPv6 gateways. All requests run at the same time, for at
most three seconds, or for --timeout. Nothing is mapped.

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
at once.

Watch can start before there is a gateway or a network, and both may disappear and return.
The same applies to the interface of --interface and to the address of --source. While
there is no route, or the gateway does not reply, watch prints each failed attempt as an
error. It tries again after 1, 2, 4 and so on up to 60 seconds, and at once when the route
changes. Check the names and addresses in the error: watch also waits for a name that
is misspelled. An invalid command line exits with 2.

With --exec, watch runs a command for each printed event, except errors.`

const watchExamples = `  goforward watch
  goforward watch --json
  goforward watch -g 192.168.1.1 --backend natpmp
  goforward watch --exec 'ddns-update --quiet'
  goforward watch --exec 'sh -c "logger $GOFORWARD_EVENT: $GOFORWARD_EXTERNAL_IP"'`

const probeHelp = `Probe connects to a port once, and prints two lines: the source from which it connects, and
the outcome. Use it on another host, to find out whether a port of yours can be reached from
there.

  connected   something accepted the TCP connection. It may be another device.
  sent        three datagrams were sent by UDP; that they arrived is not known
  echoed      the answer of --want arrived
  refused     a reset or an ICMP error arrived
  timeout     no reply

By TCP, nothing is sent, and the connection ends after a second. With --nonce, and always
by UDP, the only bytes that are sent are GFWD1, a space and the nonce: 16 random bytes in
base64url, which are 22 characters. Goforward verify recognizes its own nonces.

Of the flags that all commands share, probe uses --json, --source and --timeout, which is
five seconds by default. The exit code is 7 for refused and timeout.`

const probeExamples = `  goforward probe 198.51.100.7:8080
  goforward probe [2001:db8::7]:8080 --json
  goforward probe 198.51.100.7:27015/udp --nonce x2Hk7dVbTq0nJ5sLmA9ZgQ`

const reflectHelp = `Reflect runs a reflector until Ctrl-C, SIGTERM or SIGHUP, and then exits with 0. Run it on a
host of the internet, such as a VPS. Hosts at other places then verify their ports with it:
goforward verify 8080 --via http://HOST:8099.

A reflector connects only to the address from which a request came, if this is a public
address. A stranger learns whether a random number came back, and nothing else. The number of
requests is limited for each host and in total.

The reflector prints the address on which it listens. Once an hour, and at the end, it prints
how many requests there were. With -v, it logs each request to connect, with a part of the
address. With --json, it prints objects.

Without --cert, the reflector uses plain HTTP. A host that sees a request could then forge an
arrival, and read a token: use TLS, or a reverse proxy that adds X-Forwarded-For, with
--trust-proxy. With the token, requests also get the reason of a failure, and are not limited
for each host. Clients take the token from the environment variable GOFORWARD_REFLECTOR_TOKEN.

If this host has a second public address, the reflector connects from that one, which proves more:
a router may admit an address only because a request went to it. With --dial-from, it
connects from another address.`

const reflectExamples = `  goforward reflect
  goforward reflect --listen 198.51.100.8:80 --dial-from 198.51.100.9
  goforward reflect --cert fullchain.pem --key privkey.pem --token-file token
  goforward reflect --listen 127.0.0.1:8099 --trust-proxy 127.0.0.1
  goforward reflect --json`

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
