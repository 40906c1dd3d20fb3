package bench

// The names of the candidates.
const (
	goforwardName              = "goforward"
	goforwardGatewayName       = "goforward, gateway told"
	goforwardMapName           = "goforward map"
	goforwardMapGatewayName    = "goforward map -g"
	goforwardMapRememberedName = "goforward map, remembered"

	goforwardCloseName = "goforward, Close"
	rawCloseNATPMPName = "raw NAT-PMP, deletions"
	rawClosePCPName    = "raw PCP, deletions"
	rawCloseUPnPName   = "raw UPnP, deletions"

	rawNATPMPName  = "raw NAT-PMP"
	rawPCPName     = "raw PCP"
	rawUPnPName    = "raw UPnP"
	rawUPnPAllName = "raw UPnP, all questions"
	goNATPMPName   = "go-nat-pmp"
	gethName       = "go-ethereum"
	goupnpName     = "goupnp"
	libp2pName     = "libp2p"
	tailscaleName  = "tailscale"
	natpmpcName    = "natpmpc -g"
	upnpcName      = "upnpc"
	syncthingName  = "syncthing"
)

// The keys of the scenarios.
const (
	keyAll        = "all"
	keyNATPMP     = "natpmp"
	keyPCP        = "pcp"
	keyUPnP       = "upnp"
	keyUPnPSilent = "upnp-silent"
	keyRefused    = "refused"
	keySilent     = "silent"
	keyGateway    = "gatewaytest"
	keyDelay      = "ssdp-delay"
	keyRestart    = "restart"
	keyClose      = "close"
	keyEnable     = "warm-enable"
	keyRefresh    = "warm-refresh"
	keyDisable    = "warm-disable"
	keyList       = "warm-list"
	keyPairCPU    = "pair-cpu"
	keyPairCPUOne = "pair-cpu-one"
	keyTable100   = "table-100"
	keyTableMixed = "table-100-mixed"
	keyTable140   = "table-140"
	keyTableSlow  = "table-slow"
)

// closeComparison names the scenarios in which Close of many mappings is measured by one
// protocol, and the candidate that sends only the requests for the deletions.
type closeComparison struct {
	protocol     string
	key, slowKey string // the router of the lab; a gateway that needs some time for each response
	raw          string
}

var closeComparisons = []closeComparison{
	{"natpmp", "Close of 50, natpmp", "Close of 50, natpmp, slow", rawCloseNATPMPName},
	{"pcp", "Close of 50, pcp", "Close of 50, pcp, slow", rawClosePCPName},
	{"upnp", "Close of 50, upnp", "Close of 50, upnp, slow", rawCloseUPnPName},
}

// The names of the figures. RESULTS.md and results.json contain them.
const (
	figureHeap       = "heap of each of 10 000 mappings"
	figureGoroutines = "goroutines for 10 000 mappings"
	figureBurst      = "most renewals in a second, of 10 000 mappings"
	figureCPU        = "processor time for an hour of 10 000 mappings"
	figureRenewals   = "renewals in that hour"
	figureAllocs     = "allocations of the codecs"
	figureBinary     = "stripped command"
	figureOneliner   = "stripped library program, examples/oneliner"
	figurePairAllocs = "allocations of a pair of calls, with those of gatewaytest"
)
