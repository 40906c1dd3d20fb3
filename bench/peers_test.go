package bench

// peer is one of those who are measured.
type peer struct {
	name    string
	about   string // what is measured
	module  string // whose version to tell, or the Debian package
	whole   bool   // a whole process, not a call in one
	floor   bool   // raw sockets, no library
	prepare func(target) (attempt, error)
}

var peers = []peer{
	{name: ours, about: "forward.New, Enable", module: rootModule, prepare: goforward},
	{name: oursTold, about: "forward.New with Config.Gateway, Enable", module: rootModule, prepare: goforwardTold},
	{name: goNATPMPName, about: "gateway told: GetExternalAddress, AddPortMapping", module: "github.com/jackpal/go-nat-pmp", prepare: goNATPMP},
	{name: gethName, about: "nat.Any, AddMapping, ExternalIP", module: "github.com/ethereum/go-ethereum", prepare: goEthereum},
	{name: goupnpName, about: "clients of WANIPConnection:1 and :2 at once, GetExternalIPAddress, AddPortMapping", module: "github.com/huin/goupnp", prepare: goUPnP},
	{name: libp2pName, about: "nat.DiscoverNAT, AddMapping, GetMapping", module: "github.com/libp2p/go-libp2p", prepare: libp2p},
	{name: tailscaleName, about: "portmapper.NewClient, Probe, GetCachedMappingOrStartCreatingOne until it changes", module: "tailscale.com", prepare: tailscale},
	{name: rawNATPMPName, about: "external address, map, on one socket; gateway told", floor: true, prepare: rawNATPMP},
	{name: rawPCPName, about: "one MAP; gateway told", floor: true, prepare: rawPCP},
	{name: rawUPnPName, about: "M-SEARCH to the gateway and to multicast, description, GetExternalIPAddress, AddPortMapping", floor: true, prepare: rawUPnP},
	{name: rawCarefulName, about: "the same with what goforward asks besides: GetStatusInfo, GetSpecificPortMappingEntry before and after", floor: true, prepare: rawCareful},
	{name: oursTool, about: "goforward map -g GATEWAY P:P/udp", module: rootModule, whole: true, prepare: goforwardTool},
	{name: oursCommand, about: "goforward map P:P/udp", module: rootModule, whole: true, prepare: goforwardCommand},
	{name: natpmpcName, about: "natpmpc -g GATEWAY -a P P udp", module: "natpmpc", whole: true, prepare: natpmpc},
	{name: upnpcName, about: "upnpc -a @ P P udp", module: "miniupnpc", whole: true, prepare: upnpc},
}

func peerNamed(name string) (peer, bool) {
	for _, p := range peers {
		if p.name == name {
			return p, true
		}
	}
	return peer{}, false
}
