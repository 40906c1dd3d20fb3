package bench

import (
	"slices"
	"time"

	"github.com/natforward/goforward/internal/lab"
)

// scenario is a router, and the candidates that map a port on it. A scenario omits the
// candidates that do not support the protocols of the router, unless they search for
// gateways: then the scenario shows how long that takes.
type scenario struct {
	key, title string
	router     lab.Router
	noGateway  bool // the router supports no protocol
	candidates []string
	smoke      bool // part of the short run
}

var scenarios = []scenario{
	{
		key: keyAll, title: "A router that supports NAT-PMP, PCP and UPnP (IGD:2)", smoke: true,
		candidates: []string{
			goforwardName, goforwardGatewayName, goNATPMPName, gethName, goupnpName, libp2pName, tailscaleName, rawNATPMPName, rawPCPName, rawUPnPName,
			goforwardMapGatewayName, goforwardMapName, natpmpcName, upnpcName,
		},
	},
	{
		key: keyNATPMP, title: "NAT-PMP only", router: lab.Router{NoPCP: true, NoUPnP: true},
		candidates: []string{goforwardName, goforwardGatewayName, goNATPMPName, gethName, libp2pName, tailscaleName, rawNATPMPName, goforwardMapGatewayName, goforwardMapName, goforwardMapRememberedName, natpmpcName},
	},
	{
		key: keyPCP, title: "PCP only", router: lab.Router{NoNATPMP: true, NoUPnP: true},
		candidates: []string{goforwardName, goforwardGatewayName, tailscaleName, rawPCPName, goforwardMapGatewayName, goforwardMapName, goforwardMapRememberedName},
	},
	{
		key: keyUPnP, title: "UPnP only, port 5351 refused", router: lab.Router{Refuse5351: true}, smoke: true,
		candidates: []string{goforwardName, goforwardGatewayName, gethName, goupnpName, libp2pName, tailscaleName, rawUPnPName, rawUPnPAllName, goforwardMapGatewayName, goforwardMapName, goforwardMapRememberedName, upnpcName},
	},
	{
		key: keyUPnPSilent, title: "UPnP only, port 5351 silent", router: lab.Router{Silent5351: true},
		candidates: []string{goforwardName, goforwardGatewayName, gethName, goupnpName, libp2pName, tailscaleName, rawUPnPName, rawUPnPAllName, goforwardMapGatewayName, goforwardMapName, upnpcName},
	},
	{
		key: keyRefused, title: "No gateway: port 5351 refused, no responses to searches", noGateway: true, router: lab.Router{Refuse5351: true, NoUPnP: true},
		candidates: []string{goforwardName, gethName, goupnpName, libp2pName, tailscaleName, goNATPMPName, goforwardMapName, natpmpcName, upnpcName},
	},
	{
		key: keySilent, title: "No gateway: port 5351 silent, no responses to searches", noGateway: true, router: lab.Router{Silent5351: true, NoUPnP: true},
		candidates: []string{goforwardName, gethName, goupnpName, libp2pName, tailscaleName, goNATPMPName, goforwardMapName, natpmpcName, upnpcName},
	},
}

// comparedWith names the candidate of goforward with which another candidate is compared:
// the candidate that starts with the same information.
var comparedWith = map[string]string{
	goNATPMPName: goforwardGatewayName, rawNATPMPName: goforwardGatewayName, rawPCPName: goforwardGatewayName,
	goforwardCloseName: goforwardCloseName, rawCloseNATPMPName: goforwardCloseName, rawClosePCPName: goforwardCloseName, rawCloseUPnPName: goforwardCloseName,
	natpmpcName: goforwardMapGatewayName, upnpcName: goforwardMapName, goforwardMapName: goforwardMapName, goforwardMapRememberedName: goforwardMapRememberedName, goforwardMapGatewayName: goforwardMapGatewayName, goforwardGatewayName: goforwardGatewayName,
}

// legend describes the candidates and the tables.
func legend() Legend {
	var l Legend
	for _, p := range candidates {
		l.Candidates = append(l.Candidates, CandidateInfo{Name: p.name, What: p.about, Module: p.module, ComparedWith: comparedWith[p.name], Process: p.process})
	}
	for _, s := range scenarios {
		search := slices.Contains(s.candidates, rawUPnPName) && !slices.Contains(s.candidates, rawNATPMPName)
		l.Sections = append(l.Sections, Section{Key: s.key, Title: s.title, NoGateway: s.noGateway, Candidates: s.candidates, SSDP: search})
	}
	gatewayCandidates := []string{goforwardGatewayName, goNATPMPName, rawNATPMPName, rawUPnPName, rawUPnPAllName}
	l.Sections = append(l.Sections, Section{Key: keyGateway, Title: "gatewaytest on loopback, NAT-PMP", Candidates: gatewayCandidates})
	for _, d := range append(slices.Clone(ssdpDelays), randomDelay) {
		title := "gatewaytest on loopback, UPnP, SSDP response after " + d.String()
		if d == randomDelay {
			title = "gatewaytest on loopback, UPnP, SSDP response after a random time up to " + time.Second.String() + ", the same for all candidates of a round"
		}
		l.Sections = append(l.Sections, Section{Key: delayKey(d), Title: title, Candidates: gatewayCandidates, SSDP: true})
	}
	const pairTitle = "Warm, on gatewaytest: processor time of map and unmap over NAT-PMP"
	l.Sections = append(l.Sections,
		Section{Key: keyPairCPU, Title: pairTitle, Candidates: []string{goforwardName, goNATPMPName}},
		Section{Key: keyPairCPUOne, Title: pairTitle + ", with GOMAXPROCS=1", Candidates: []string{goforwardName, goNATPMPName}})
	for _, w := range tables {
		l.Sections = append(l.Sections, Section{Key: w.key, Title: w.title, Candidates: []string{goforwardName, goupnpName}})
	}
	l.Sections = append(l.Sections, closeSections()...)
	return Legend{l.Candidates, append(l.Sections,
		Section{Key: keyRestart, Title: "From the router's announcement of a restart until the mapping is restored", Candidates: []string{goforwardName}},
		Section{Key: keyEnable, Title: "Warm, on gatewaytest: map and unmap over NAT-PMP", Candidates: []string{goforwardGatewayName, goNATPMPName}},
		Section{Key: keyRefresh, Title: "Warm, on gatewaytest: refresh over NAT-PMP", Candidates: []string{goforwardGatewayName, goNATPMPName}},
		Section{Key: keyDisable, Title: "Warm, on gatewaytest: unmap over NAT-PMP", Candidates: []string{goforwardGatewayName, goNATPMPName}},
		Section{Key: keyList, Title: "Warm, on gatewaytest: list a UPnP table of 1 000 entries", Candidates: []string{goforwardName, goupnpName}},
	)}
}
