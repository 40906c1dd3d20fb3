package bench

import "github.com/natforward/goforward/internal/lab"

// scenario is a router, and those who are asked to map on it. Who does not speak
// what it speaks is left out, unless it looks for gateways: then it shows how long
// that takes.
type scenario struct {
	key, title string
	router     lab.Router
	nothing    bool // there is nothing to find
	peers      []string
	smoke      bool // part of the short run
}

var scenarios = []scenario{
	{
		key: keyAll, title: "A router that speaks NAT-PMP, PCP and UPnP (IGD:2)", smoke: true,
		peers: []string{
			ours, oursTold, goNATPMPName, gethName, goupnpName, libp2pName, tailscaleName, rawNATPMPName, rawPCPName, rawUPnPName,
			oursTool, oursCommand, natpmpcName, upnpcName,
		},
	},
	{
		key: keyNATPMP, title: "NAT-PMP only", router: lab.Router{NoPCP: true, NoUPnP: true},
		peers: []string{ours, oursTold, goNATPMPName, gethName, libp2pName, tailscaleName, rawNATPMPName, oursTool, oursCommand, natpmpcName},
	},
	{
		key: keyPCP, title: "PCP only", router: lab.Router{NoNATPMP: true, NoUPnP: true},
		peers: []string{ours, oursTold, tailscaleName, rawPCPName, oursTool, oursCommand},
	},
	{
		key: keyUPnP, title: "UPnP only, port 5351 refused", router: lab.Router{Refuse5351: true}, smoke: true,
		peers: []string{ours, oursTold, gethName, goupnpName, libp2pName, tailscaleName, rawUPnPName, rawCarefulName, oursTool, oursCommand, upnpcName},
	},
	{
		key: keyUPnPSilent, title: "UPnP only, port 5351 silent", router: lab.Router{Silent5351: true},
		peers: []string{ours, oursTold, gethName, goupnpName, libp2pName, tailscaleName, rawUPnPName, rawCarefulName, oursTool, oursCommand, upnpcName},
	},
	{
		key: keyRefused, title: "Nothing: port 5351 refused, nobody answers searches", nothing: true, router: lab.Router{Refuse5351: true, NoUPnP: true},
		peers: []string{ours, gethName, goupnpName, libp2pName, tailscaleName, goNATPMPName, oursCommand, natpmpcName, upnpcName},
	},
	{
		key: keySilent, title: "Nothing: port 5351 silent, nobody answers searches", nothing: true, router: lab.Router{Silent5351: true, NoUPnP: true},
		peers: []string{ours, gethName, goupnpName, libp2pName, tailscaleName, goNATPMPName, oursCommand, natpmpcName, upnpcName},
	},
}
