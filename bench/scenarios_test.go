package bench

import (
	"slices"
	"time"

	"github.com/natforward/goforward/internal/lab"
)

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

// against says with what of goforward's somebody's time is compared: with what
// is told as much.
var against = map[string]string{
	goNATPMPName: oursTold, rawNATPMPName: oursTold, rawPCPName: oursTold,
	natpmpcName: oursTool, upnpcName: oursCommand, oursCommand: oursCommand, oursTool: oursTool, oursTold: oursTold,
}

func descriptions() Legend {
	var l Legend
	for _, p := range peers {
		l.Peers = append(l.Peers, About{Name: p.name, What: p.about, Module: p.module, Against: against[p.name], Whole: p.whole})
	}
	for _, s := range scenarios {
		search := slices.Contains(s.peers, rawUPnPName) && !slices.Contains(s.peers, rawNATPMPName)
		l.Sections = append(l.Sections, Section{Key: s.key, Title: s.title, Nothing: s.nothing, Peers: s.peers, SSDP: search})
	}
	told := []string{oursTold, goNATPMPName, rawNATPMPName, rawUPnPName, rawCarefulName}
	l.Sections = append(l.Sections, Section{Key: keyGateway, Title: "gatewaytest on loopback, NAT-PMP", Peers: told})
	for _, d := range append(slices.Clone(ssdpDelays), randomDelay) {
		title := "gatewaytest on loopback, UPnP, SSDP answered after " + d.String()
		if d == randomDelay {
			title = "gatewaytest on loopback, UPnP, SSDP answered after up to " + time.Second.String() + ", the same for all of a round"
		}
		l.Sections = append(l.Sections, Section{Key: delayKey(d), Title: title, Peers: told, SSDP: true})
	}
	return Legend{l.Peers, append(l.Sections,
		Section{Key: keyRestart, Title: "From the router's announcement that it has restarted until the mapping is back", Peers: []string{ours}},
		Section{Key: keyEnable, Title: "Warm, on gatewaytest: map and unmap by NAT-PMP", Peers: []string{oursTold, goNATPMPName}},
		Section{Key: keyRefresh, Title: "Warm, on gatewaytest: refresh by NAT-PMP", Peers: []string{oursTold, goNATPMPName}},
		Section{Key: keyDisable, Title: "Warm, on gatewaytest: unmap by NAT-PMP", Peers: []string{oursTold, goNATPMPName}},
		Section{Key: keyList, Title: "Warm, on gatewaytest: a UPnP table of 1 000 entries", Peers: []string{ours, goupnpName}},
	)}
}
