package gatewaytest_test

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// pairSwitch is a switch of package quirks in the test of pairs.
type pairSwitch struct {
	// name is the path of the field, and "=" and the value if the field has several.
	name string
	set  func(*gatewaytest.Config)
	// may has the kinds of errors that requests may return with this switch. None means
	// that they must succeed.
	may []error
	// fails is set if Enable must fail with this switch alone.
	fails bool
	// everywhere is set if the other protocols fail too.
	everywhere bool
	// kept is set if the router may keep the mapping. Close must then report it.
	kept bool
	// deaf is set if the router forwards nothing, and no response shows it.
	deaf bool
	// blind is set if no response and no notification shows a restart.
	blind bool
	// restless is set if the router seems to restart at any time.
	restless bool
	// v6 is set if the switch concerns pinholes only.
	v6 bool
	// before prepares the router.
	before func(*gatewaytest.Gateway)
}

// unpairedFields are the fields without a switch, with the reasons.
var unpairedFields = map[string]string{
	"AnnounceAs":                  "the form of announcements is part of no protocol alone",
	"AnnounceCount":               "it changes only how often an announcement is repeated",
	"UPnP.Description.WANDevices": "set by the switch for Connected",
	"UPnP.Rules.Port":             "set by the switch for PortFault",
	"UPnP.Rules.IdleAbove":        "set by the switch for IdleAfter",
	"UPnP.Demands.MaxDescription": "set by the switch for LongDescription",
	"UPnP.Events.Undescribed":     "mappings do not depend on events",
	"UPnP.Events.Status":          "mappings do not depend on events",
	"UPnP.Events.Silent":          "mappings do not depend on events",
	"UPnP.Listing.RangeCrashes":   "it has an effect only with more than 128 entries",
}

// excludedPairs are the pairs that do not run, with the reasons.
var excludedPairs = map[string]string{
	"NATPMP.VPN + NATPMP.OwnPort":                   "both say which internal port a response names",
	"UPnP.FaultForm.Code + UPnP.Rules.Unlisted":     "no response shows that there is no entry",
	"UPnP.FaultForm.Code + UPnP.Rules.FullSilent":   "no response shows that there is no entry",
	"UPnP.MovePort + UPnP.Search.IPv4Only":          "the test names the URL of the description, which changes",
	"UPnP.Rules.ListedClient + UPnP.Listing.Client": "no response shows that the entry is for another host",
}

// combination says what a switch together with one of others may cause, and neither alone.
type combination struct {
	one    string
	others []string
	may    []error
	kept   bool // as in pairSwitch
	blind  bool // as in pairSwitch
}

var combinations = []combination{
	// Version 1 has no firewall service.
	{one: "UPnP.Version", others: []string{
		"UPnP.Firewall.Disabled", "UPnP.Firewall.NotAllowed", "UPnP.Firewall.Absent", "UPnP.Firewall.NeverWorking",
	}, may: mayNoReply},
	// All leases are refused.
	{one: "UPnP.Leases.PermanentOnly", others: []string{"UPnP.Leases.NoPermanent"}, may: mayUnsupported},
	// A private external address explains a refusal, and other requests are not tried.
	{one: "NATPMP.RefusePrivate", others: []string{"UPnP.Demands.OddDescription", "UPnP.Rules.PortFault"}, may: mayPrivate},
	{one: "PCP.RefusePrivate", others: []string{"UPnP.Demands.OddDescription", "UPnP.Rules.PortFault"}, may: mayPrivate},
	// The state explains a refusal, or the address is not known.
	{one: "UPnP.Status.External", others: []string{"UPnP.Demands.OddDescription", "UPnP.Rules.PortFault", "UPnP.Rules.Full"}, may: mayPrivate},
	{one: "UPnP.Rules.RefusePrivate", others: []string{"UPnP.Status.Connection=Disconnected"}, may: mayNetworkFailure},
	{one: "UPnP.Rules.RefusePrivate", others: []string{"UPnP.Actions.Fault=optional"}, may: mayBeFull},
	// The gateway refuses the first request, or the entry looks the same after a renewal.
	// The client cannot know this without the response.
	{one: "UPnP.Actions.NoReply=add", others: []string{
		"UPnP.Description.FirstRefuses", "UPnP.Demands.OddDescription", "UPnP.Demands.BlankDescription", "UPnP.Demands.LongDescription",
		"UPnP.Leases.PermanentOnly", "UPnP.Leases.Reported", "UPnP.Leases.ReportedZero", "UPnP.Leases.Max",
		"UPnP.Rules.LowPorts", "UPnP.Rules.SamePort", "UPnP.Rules.PortFault", "UPnP.Rules.AnyPortOnly", "UPnP.Rules.Unlisted",
		"UPnP.Rules.SourceNeeded", "UPnP.Rules.ListedClient", "UPnP.Rules.AddDisabled", "UPnP.Rules.Full", "UPnP.Rules.FullSilent",
		"UPnP.Rules.SwitchedOff", "UPnP.Rules.RefusePrivate",
	}, may: mayNoReply},
	// The gateway refuses requests for several possible reasons, and the time is too short to
	// try them all.
	{one: "UPnP.Actions.Delay", others: []string{"UPnP.Demands.OddDescription", "UPnP.Rules.PortFault", "UPnP.Rules.Full"}, may: mayNoReply},
	// A slow device does not delete the entry in time. Close reports that it may remain.
	{one: "UPnP.Actions.Delay", others: []string{"UPnP.Rules.PortFault"}, kept: true},
	// A device requires User-Agent only in HTTP/1.1, others reject it in HTTP/1.0.
	{one: "UPnP.Demands.UserAgent", others: []string{"UPnP.Demands.GetHTTP10"}, may: mayMalformed},
	// An entry that can neither be overwritten nor deleted cannot be renewed.
	{one: "UPnP.Rules.NoReAdd", others: []string{"UPnP.Rules.DeleteIgnored", "UPnP.Rules.DeleteFault"}, may: mayRefuse},
	// Only the code shows why a request is refused.
	{one: "UPnP.FaultForm.Code", others: []string{
		"UPnP.Rules.SourceNeeded", "UPnP.Rules.SwitchedOff", "UPnP.Rules.AnyPortOnly", "UPnP.Firewall.Disabled", "UPnP.Firewall.NotAllowed",
	}, may: mayBeFull},
	// Only the code shows that the entry is deleted.
	{one: "UPnP.FaultForm.Code", others: []string{"UPnP.Actions.NoReply=delete"}, kept: true},
	// Neither the BOOTID nor the uptime shows a restart.
	{one: "UPnP.Search.BootIDStuck", others: []string{"UPnP.Status.Unsupported", "UPnP.Actions.Fault=optional", "UPnP.Actions.Reset=optional", "UPnP.Actions.Hang=status"}, blind: true},
}

var (
	mayUnsupported    = []error{backends.ErrUnsupported}
	mayNoReply        = []error{backends.ErrNoReply}
	mayRefuse         = []error{backends.ErrNotAuthorized}
	mayConflict       = []error{backends.ErrConflict}
	mayPrivate        = []error{backends.ErrPrivateWAN}
	mayMalformed      = []error{backends.ErrMalformed}
	mayNetworkFailure = []error{backends.ErrNetworkFailure}
	mayBeFull         = []error{backends.ErrNoResources}
)

func natpmpSwitch(name string, set func(*quirks.NATPMP)) pairSwitch {
	return pairSwitch{name: "NATPMP." + name, set: func(c *gatewaytest.Config) { set(&c.Quirks.NATPMP) }}
}

func pcpSwitch(name string, set func(*quirks.PCP)) pairSwitch {
	return pairSwitch{name: "PCP." + name, set: func(c *gatewaytest.Config) { set(&c.Quirks.PCP) }}
}

func upnpSwitch(name string, set func(*quirks.UPnP)) pairSwitch {
	return pairSwitch{name: "UPnP." + name, set: func(c *gatewaytest.Config) { set(&c.Quirks.UPnP) }}
}

// with returns the switch with an edit.
func (s pairSwitch) with(edit func(*pairSwitch)) pairSwitch {
	edit(&s)
	return s
}

// mustFail returns the switch with errors, one of which it causes alone.
func (s pairSwitch) mustFail(kinds ...[]error) pairSwitch {
	s.may, s.fails = slices.Concat(kinds...), true
	return s
}

// private sets a private external address.
func (s pairSwitch) private() pairSwitch {
	set := s.set
	s.set = func(c *gatewaytest.Config) {
		set(c)
		c.External = netip.MustParseAddr("192.168.7.7")
	}
	return s
}

// full fills the table.
func (s pairSwitch) full() pairSwitch {
	set := s.set
	s.everywhere = true
	s.set = func(c *gatewaytest.Config) {
		set(c)
		c.TableLimit = 1
	}
	s.before = func(gw *gatewaytest.Gateway) {
		e := otherHostEntry(backends.UDP, 9)
		e.Static = true
		_ = gw.AddMapping(e)
	}
	return s
}

func restless(s *pairSwitch) { s.restless = true }
func blind(s *pairSwitch)    { s.blind = true }
func kept(s *pairSwitch)     { s.kept = true }
func deaf(s *pairSwitch)     { s.deaf = true }
func v6(s *pairSwitch)       { s.v6 = true }

// only returns a field of quirks.Actions for these actions.
func only[T any](value T, actions ...string) map[string]T {
	m := map[string]T{}
	for _, a := range actions {
		m[a] = value
	}
	return m
}

var switches = []pairSwitch{
	natpmpSwitch("VersionError=Opcode", func(q *quirks.NATPMP) { q.VersionError = quirks.VersionErrorOpcode }),
	natpmpSwitch("VersionError=Silent", func(q *quirks.NATPMP) { q.VersionError = quirks.VersionErrorSilent }),
	natpmpSwitch("ShortOpcodeError", func(q *quirks.NATPMP) { q.ShortOpcodeError = true }),
	natpmpSwitch("RefusePrivate", func(q *quirks.NATPMP) { q.RefusePrivate = true }).private().mustFail(mayPrivate, mayNetworkFailure),
	natpmpSwitch("AnyDeletePort", func(q *quirks.NATPMP) { q.AnyDeletePort = true }),
	natpmpSwitch("EchoErrors", func(q *quirks.NATPMP) { q.EchoErrors = true }),
	natpmpSwitch("LowByte", func(q *quirks.NATPMP) { q.LowByte = true }).mustFail(mayNoReply, mayMalformed).with(kept),
	natpmpSwitch("EpochStuck", func(q *quirks.NATPMP) { q.EpochStuck = true }).with(blind),
	natpmpSwitch("EpochBack", func(q *quirks.NATPMP) { q.EpochBack = true }).with(restless),
	natpmpSwitch("ExternalZero", func(q *quirks.NATPMP) { q.ExternalZero = true }),
	natpmpSwitch("MultiplePorts", func(q *quirks.NATPMP) { q.MultiplePorts = true }),
	natpmpSwitch("VPN", func(q *quirks.NATPMP) { q.VPN = true }).mustFail(mayUnsupported),
	natpmpSwitch("PCPOnly", func(q *quirks.NATPMP) { q.PCPOnly = true }).mustFail(mayUnsupported),
	natpmpSwitch("PCPOnlyTruncated", func(q *quirks.NATPMP) { q.PCPOnlyTruncated = true }).mustFail(mayUnsupported),
	natpmpSwitch("OwnPort", func(q *quirks.NATPMP) { q.OwnPort = true }).mustFail(mayUnsupported),
	natpmpSwitch("ShortErrors", func(q *quirks.NATPMP) { q.ShortErrors = true }),
	pcpSwitch("ThirdParty", func(q *quirks.PCP) { q.ThirdParty = true }),
	pcpSwitch("AllPorts", func(q *quirks.PCP) { q.AllPorts = true }),
	pcpSwitch("WildcardMalformed", func(q *quirks.PCP) { q.WildcardMalformed = true }),
	pcpSwitch("MaxFilters", func(q *quirks.PCP) { q.MaxFilters = 1 }),
	pcpSwitch("MappingUpdates", func(q *quirks.PCP) { q.MappingUpdates = true }),
	pcpSwitch("UpdateCount", func(q *quirks.PCP) { q.UpdateCount = 1 }),
	pcpSwitch("NAT", func(q *quirks.PCP) { q.NAT = true }).mustFail(mayUnsupported),
	pcpSwitch("RefusePrivate", func(q *quirks.PCP) { q.RefusePrivate = true }).private().mustFail(mayPrivate),
	pcpSwitch("NonceLoose", func(q *quirks.PCP) { q.NonceLoose = true }),
	pcpSwitch("FilterIgnored", func(q *quirks.PCP) { q.FilterIgnored = true }),
	pcpSwitch("PreferFailureIgnored", func(q *quirks.PCP) { q.PreferFailureIgnored = true }),
	pcpSwitch("DeleteUnknownNoResources", func(q *quirks.PCP) { q.DeleteUnknownNoResources = true }),
	pcpSwitch("ErrorLifetimeZero", func(q *quirks.PCP) { q.ErrorLifetimeZero = true }),
	pcpSwitch("OptionsEchoed", func(q *quirks.PCP) { q.OptionsEchoed = true }),
	pcpSwitch("VersionOne", func(q *quirks.PCP) { q.VersionOne = true }).mustFail(mayUnsupported),
	pcpSwitch("NoAnnounce", func(q *quirks.PCP) { q.NoAnnounce = true }),
	pcpSwitch("AnnounceUnsupported", func(q *quirks.PCP) { q.AnnounceUnsupported = true }),
	pcpSwitch("NoPeer", func(q *quirks.PCP) { q.NoPeer = true }),
	pcpSwitch("DropOptions", func(q *quirks.PCP) { q.DropOptions = true }),
	upnpSwitch("Version", func(q *quirks.UPnP) { q.Version = 1 }),
	upnpSwitch("UDN", func(q *quirks.UPnP) { q.UDN = "uuid:router" }),
	upnpSwitch("AnyClient", func(q *quirks.UPnP) { q.AnyClient = true }),
	upnpSwitch("MovePort", func(q *quirks.UPnP) { q.MovePort = true }),
	upnpSwitch("Search.MulticastOnly", func(q *quirks.UPnP) { q.Search.MulticastOnly = true }).mustFail(mayNoReply),
	upnpSwitch("Search.UnicastOnly", func(q *quirks.UPnP) { q.Search.UnicastOnly = true }),
	upnpSwitch("Search.OtherPort", func(q *quirks.UPnP) { q.Search.OtherPort = true }),
	upnpSwitch("Search.Version", func(q *quirks.UPnP) { q.Search.Version = 1 }),
	upnpSwitch("Search.FirstOnly", func(q *quirks.UPnP) { q.Search.FirstOnly = true }),
	upnpSwitch("Search.NoIGD2", func(q *quirks.UPnP) { q.Search.NoIGD2 = true }),
	upnpSwitch("Search.NoPort1900", func(q *quirks.UPnP) { q.Search.NoPort1900 = true }),
	upnpSwitch("Search.Location", func(q *quirks.UPnP) {
		q.Search.Location = func(at string) string { return strings.Replace(at, "http:", "HTTP:", 1) }
	}),
	upnpSwitch("Search.Duplicates", func(q *quirks.UPnP) { q.Search.Duplicates = 3 }),
	upnpSwitch("Search.Spread", func(q *quirks.UPnP) { q.Search.Spread = true }),
	upnpSwitch("Search.Garbage", func(q *quirks.UPnP) {
		q.Search.Garbage = [][]byte{nil, []byte("HTTP/1.1 200 OK\r\n\r\n"), []byte("\x00\xff")}
	}),
	upnpSwitch("Search.LFOnly", func(q *quirks.UPnP) { q.Search.LFOnly = true }),
	upnpSwitch("Search.NoSpace", func(q *quirks.UPnP) { q.Search.NoSpace = true }),
	upnpSwitch("Search.NoReason", func(q *quirks.UPnP) { q.Search.NoReason = true }),
	upnpSwitch("Search.NoBlankLine", func(q *quirks.UPnP) { q.Search.NoBlankLine = true }),
	upnpSwitch("Search.BootIDStuck", func(q *quirks.UPnP) { q.Search.BootIDStuck = true }),
	upnpSwitch("Search.Update", func(q *quirks.UPnP) { q.Search.Update = true }),
	upnpSwitch("Search.ConnectionOnly", func(q *quirks.UPnP) { q.Search.ConnectionOnly = true }),
	upnpSwitch("Search.IPv4Only", func(q *quirks.UPnP) { q.Search.IPv4Only = true }).with(v6),
	upnpSwitch("Search.Delay", func(q *quirks.UPnP) { q.Search.Delay = 300 * time.Millisecond }),
	upnpSwitch("Description.Path", func(q *quirks.UPnP) { q.Description.Path = "/a/b/c.xml?d=e" }),
	upnpSwitch("Description.Connected", func(q *quirks.UPnP) { q.Description.WANDevices, q.Description.Connected = 2, 1 }),
	upnpSwitch("Description.Connections=PPP", func(q *quirks.UPnP) { q.Description.Connections = quirks.ConnectionPPP }),
	upnpSwitch("Description.Connections=Both", func(q *quirks.UPnP) { q.Description.Connections = quirks.ConnectionBoth }),
	upnpSwitch("Description.DSLForum", func(q *quirks.UPnP) { q.Description.DSLForum = true }),
	upnpSwitch("Description.URLBase=Empty", func(q *quirks.UPnP) { q.Description.URLBase = quirks.URLBaseEmpty }),
	upnpSwitch("Description.URLBase=Good", func(q *quirks.UPnP) { q.Description.URLBase = quirks.URLBaseGood }),
	upnpSwitch("Description.URLBase=WrongHost", func(q *quirks.UPnP) { q.Description.URLBase = quirks.URLBaseWrongHost }),
	upnpSwitch("Description.URLBase=NoPort", func(q *quirks.UPnP) { q.Description.URLBase = quirks.URLBaseNoPort }),
	upnpSwitch("Description.URLBase=Name", func(q *quirks.UPnP) { q.Description.URLBase = quirks.URLBaseName }),
	upnpSwitch("Description.URLBase=OldHost", func(q *quirks.UPnP) { q.Description.URLBase = quirks.URLBaseOldHost }),
	upnpSwitch("Description.URLBase=Deep", func(q *quirks.UPnP) { q.Description.URLBase = quirks.URLBaseDeep }),
	upnpSwitch("Description.ControlURL=Absolute", func(q *quirks.UPnP) { q.Description.ControlURL = quirks.ControlAbsolute }),
	upnpSwitch("Description.ControlURL=Relative", func(q *quirks.UPnP) { q.Description.ControlURL = quirks.ControlRelative }),
	upnpSwitch("Description.ControlURL=RelativeToRoot", func(q *quirks.UPnP) { q.Description.ControlURL = quirks.ControlRelativeToRoot }),
	upnpSwitch("Description.ControlURL=Colon", func(q *quirks.UPnP) { q.Description.ControlURL = quirks.ControlColon }),
	upnpSwitch("Description.ControlURL=Spaces", func(q *quirks.UPnP) { q.Description.ControlURL = quirks.ControlSpaces }),
	upnpSwitch("Description.ControlURL=WrongHost", func(q *quirks.UPnP) { q.Description.ControlURL = quirks.ControlWrongHost }),
	upnpSwitch("Description.ControlURL=Empty", func(q *quirks.UPnP) { q.Description.ControlURL = quirks.ControlEmpty }).mustFail(mayNoReply, mayUnsupported),
	upnpSwitch("Description.ControlURL=Query", func(q *quirks.UPnP) { q.Description.ControlURL = quirks.ControlQuery }),
	upnpSwitch("Description.ControlURL=Parent", func(q *quirks.UPnP) { q.Description.ControlURL = quirks.ControlParent }),
	upnpSwitch("Description.ControlURL=Dot", func(q *quirks.UPnP) { q.Description.ControlURL = quirks.ControlDot }),
	upnpSwitch("Description.ControlURL=SchemeRelative", func(q *quirks.UPnP) { q.Description.ControlURL = quirks.ControlSchemeRelative }),
	upnpSwitch("Description.ControlURL=HostPort", func(q *quirks.UPnP) { q.Description.ControlURL = quirks.ControlHostPort }),
	upnpSwitch("Description.TwoSessions", func(q *quirks.UPnP) { q.Description.TwoSessions = true }),
	upnpSwitch("Description.FirstRefuses", func(q *quirks.UPnP) { q.Description.FirstRefuses, q.Description.TwoSessions = 401, true }),
	upnpSwitch("Description.SharedUDN", func(q *quirks.UPnP) { q.Description.SharedUDN = true }),
	upnpSwitch("Description.MediaServer", func(q *quirks.UPnP) { q.Description.MediaServer = true }).mustFail(mayNoReply, mayUnsupported),
	upnpSwitch("Description.Status=404", func(q *quirks.UPnP) { q.Description.Status = 404 }).mustFail(mayNoReply, mayMalformed, mayUnsupported),
	upnpSwitch("Description.Status=301", func(q *quirks.UPnP) { q.Description.Status = 301 }).mustFail(mayNoReply, mayMalformed, mayUnsupported),
	upnpSwitch("Description.HTML", func(q *quirks.UPnP) { q.Description.HTML = true }).mustFail(mayNoReply, mayMalformed, mayUnsupported),
	upnpSwitch("Description.FirstReset", func(q *quirks.UPnP) { q.Description.FirstReset = 1 }),
	upnpSwitch("Description.FirstStatus", func(q *quirks.UPnP) { q.Description.FirstStatus = 1 }),
	upnpSwitch("Wire.HTTP10", func(q *quirks.UPnP) { q.Wire.HTTP10 = true }),
	upnpSwitch("Wire.Version", func(q *quirks.UPnP) { q.Wire.Version = "HTTP1.1" }),
	upnpSwitch("Wire.NoLength", func(q *quirks.UPnP) { q.Wire.NoLength = true }),
	upnpSwitch("Wire.Chunked", func(q *quirks.UPnP) { q.Wire.Chunked = true }),
	upnpSwitch("Wire.LengthOff", func(q *quirks.UPnP) { q.Wire.LengthOff = 5 }),
	upnpSwitch("Wire.LFOnly", func(q *quirks.UPnP) { q.Wire.LFOnly = true }),
	upnpSwitch("Wire.NoSpace", func(q *quirks.UPnP) { q.Wire.NoSpace = true }),
	upnpSwitch("Wire.NoReason", func(q *quirks.UPnP) { q.Wire.NoReason = true }),
	upnpSwitch("Wire.LeaveOpen", func(q *quirks.UPnP) { q.Wire.LeaveOpen = true }),
	upnpSwitch("XML.Latin1", func(q *quirks.UPnP) { q.XML.Latin1 = true }),
	upnpSwitch("XML.BadUTF8", func(q *quirks.UPnP) { q.XML.BadUTF8 = true }),
	upnpSwitch("XML.RawAmpersand", func(q *quirks.UPnP) { q.XML.RawAmpersand = true }),
	upnpSwitch("XML.BOM", func(q *quirks.UPnP) { q.XML.BOM = true }),
	upnpSwitch("XML.LeadingSpace", func(q *quirks.UPnP) { q.XML.LeadingSpace = true }),
	upnpSwitch("XML.NoDeclaration", func(q *quirks.UPnP) { q.XML.NoDeclaration = true }),
	upnpSwitch("XML.NULTail", func(q *quirks.UPnP) { q.XML.NULTail = true }),
	upnpSwitch("XML.Prefix", func(q *quirks.UPnP) { q.XML.Prefix = "d" }),
	upnpSwitch("XML.NoNamespace", func(q *quirks.UPnP) { q.XML.NoNamespace = true }),
	upnpSwitch("XML.GluedNamespace", func(q *quirks.UPnP) { q.XML.GluedNamespace = true }),
	upnpSwitch("XML.CommentDashes", func(q *quirks.UPnP) { q.XML.CommentDashes = true }),
	upnpSwitch("XML.EchoPI", func(q *quirks.UPnP) { q.XML.EchoPI = true }),
	upnpSwitch("XML.TextCDATAEnd", func(q *quirks.UPnP) { q.XML.TextCDATAEnd = true }),
	upnpSwitch("XML.AttrLess", func(q *quirks.UPnP) { q.XML.AttrLess = true }),
	upnpSwitch("XML.SpacedTag", func(q *quirks.UPnP) { q.XML.SpacedTag = true }),
	upnpSwitch("FaultForm.Prefix", func(q *quirks.UPnP) { q.FaultForm.Prefix = "SOAP-ENV" }),
	upnpSwitch("FaultForm.CamelCase", func(q *quirks.UPnP) { q.FaultForm.CamelCase = true }),
	upnpSwitch("FaultForm.CodePrefix", func(q *quirks.UPnP) { q.FaultForm.CodePrefix = "e" }),
	upnpSwitch("FaultForm.CodeSpaces", func(q *quirks.UPnP) { q.FaultForm.CodeSpaces = true }),
	upnpSwitch("FaultForm.StatusOK", func(q *quirks.UPnP) { q.FaultForm.StatusOK = true }),
	upnpSwitch("FaultForm.Code", func(q *quirks.UPnP) { q.FaultForm.Code = -911 }),
	upnpSwitch("Demands.ExactSOAPAction", func(q *quirks.UPnP) { q.Demands.ExactSOAPAction = true }),
	upnpSwitch("Demands.QuotedSOAPAction", func(q *quirks.UPnP) { q.Demands.QuotedSOAPAction = true }),
	upnpSwitch("Demands.SOAPActionNotLast", func(q *quirks.UPnP) { q.Demands.SOAPActionNotLast = true }),
	upnpSwitch("Demands.ContentType", func(q *quirks.UPnP) { q.Demands.ContentType = `text/xml; charset="utf-8"` }),
	upnpSwitch("Demands.UserAgent", func(q *quirks.UPnP) { q.Demands.UserAgent = "UPnP/1.1" }),
	upnpSwitch("Demands.LiteralHost", func(q *quirks.UPnP) { q.Demands.LiteralHost = true }),
	upnpSwitch("Demands.GetHTTP10", func(q *quirks.UPnP) { q.Demands.GetHTTP10 = true }),
	upnpSwitch("Demands.Compact", func(q *quirks.UPnP) { q.Demands.Compact = true }),
	upnpSwitch("Demands.RemoteHost", func(q *quirks.UPnP) { q.Demands.RemoteHost = true }),
	upnpSwitch("Demands.NoZeroRemoteHost", func(q *quirks.UPnP) { q.Demands.NoZeroRemoteHost = true }),
	upnpSwitch("Demands.UpperProtocol", func(q *quirks.UPnP) { q.Demands.UpperProtocol = true }),
	upnpSwitch("Demands.BlankDescription", func(q *quirks.UPnP) { q.Demands.BlankDescription = 402 }),
	upnpSwitch("Demands.OddDescription", func(q *quirks.UPnP) { q.Demands.OddDescription = 501 }),
	upnpSwitch("Demands.LongDescription", func(q *quirks.UPnP) { q.Demands.LongDescription, q.Demands.MaxDescription = 605, 12 }),
	upnpSwitch("Actions.Fault=optional", func(q *quirks.UPnP) { q.Actions.Fault = only(501, "GetStatusInfo", "GetExternalIPAddress") }),
	upnpSwitch("Actions.Reset=optional", func(q *quirks.UPnP) { q.Actions.Reset = only(true, "GetStatusInfo", "GetSpecificPortMappingEntry") }),
	upnpSwitch("Actions.Hang=status", func(q *quirks.UPnP) { q.Actions.Hang = only(true, "GetStatusInfo") }),
	upnpSwitch("Actions.Hang=lookup", func(q *quirks.UPnP) { q.Actions.Hang = only(true, "GetSpecificPortMappingEntry") }),
	upnpSwitch("Actions.NoReply=add", func(q *quirks.UPnP) { q.Actions.NoReply = only(true, "AddPortMapping", "AddAnyPortMapping") }),
	upnpSwitch("Actions.NoReply=delete", func(q *quirks.UPnP) { q.Actions.NoReply = only(true, "DeletePortMapping") }),
	upnpSwitch("Actions.Delay", func(q *quirks.UPnP) { q.Actions.Delay = only(3*time.Second, "AddPortMapping", "AddAnyPortMapping") }),
	upnpSwitch("Leases.PermanentOnly", func(q *quirks.UPnP) { q.Leases.PermanentOnly = 725 }),
	upnpSwitch("Leases.NoPermanent", func(q *quirks.UPnP) { q.Leases.NoPermanent = 402 }),
	upnpSwitch("Leases.NoLong", func(q *quirks.UPnP) { q.Leases.NoLong = 402 }),
	upnpSwitch("Leases.Max", func(q *quirks.UPnP) { q.Leases.Max = 10 * time.Minute }),
	upnpSwitch("Leases.Reported", func(q *quirks.UPnP) { q.Leases.Reported = time.Hour }),
	upnpSwitch("Leases.ReportedZero", func(q *quirks.UPnP) { q.Leases.ReportedZero = true }),
	upnpSwitch("Leases.NoRefresh", func(q *quirks.UPnP) { q.Leases.NoRefresh = true }),
	upnpSwitch("Rules.NoReAdd", func(q *quirks.UPnP) { q.Rules.NoReAdd = 718 }),
	upnpSwitch("Rules.OnePort", func(q *quirks.UPnP) { q.Rules.OnePort = true }),
	upnpSwitch("Rules.OtherMechanism", func(q *quirks.UPnP) { q.Rules.OtherMechanism = 729 }),
	upnpSwitch("Rules.SamePort", func(q *quirks.UPnP) { q.Rules.SamePort = true }),
	upnpSwitch("Rules.LowPorts", func(q *quirks.UPnP) { q.Rules.LowPorts = 606 }),
	upnpSwitch("Rules.SourceNeeded", func(q *quirks.UPnP) { q.Rules.SourceNeeded = true }).mustFail(mayUnsupported),
	upnpSwitch("Rules.AnySourceOnly", func(q *quirks.UPnP) { q.Rules.AnySourceOnly = true }),
	upnpSwitch("Rules.AnyPortOnly", func(q *quirks.UPnP) { q.Rules.AnyPortOnly = true }).mustFail(mayUnsupported),
	upnpSwitch("Rules.Full", func(q *quirks.UPnP) { q.Rules.Full = 501 }).full().mustFail(mayBeFull, mayUnsupported),
	upnpSwitch("Rules.FullSilent", func(q *quirks.UPnP) { q.Rules.FullSilent = true }).full().mustFail(mayBeFull),
	upnpSwitch("Rules.Unlisted", func(q *quirks.UPnP) { q.Rules.Unlisted = true }).mustFail(mayBeFull),
	upnpSwitch("Rules.ListedClient", func(q *quirks.UPnP) { q.Rules.ListedClient = netip.MustParseAddr("127.0.0.77") }).mustFail(mayBeFull, mayRefuse, mayConflict).with(kept),
	upnpSwitch("Rules.NoTraffic", func(q *quirks.UPnP) { q.Rules.NoTraffic = true }).with(deaf),
	upnpSwitch("Rules.IdleAfter", func(q *quirks.UPnP) { q.Rules.IdleAfter, q.Rules.IdleAbove = time.Hour, 5 }),
	upnpSwitch("Rules.RefusePrivate", func(q *quirks.UPnP) { q.Rules.RefusePrivate = true }).private().mustFail(mayPrivate),
	upnpSwitch("Rules.SwitchedOff", func(q *quirks.UPnP) { q.Rules.SwitchedOff = true }).mustFail(mayRefuse),
	upnpSwitch("Rules.NoAddAny", func(q *quirks.UPnP) { q.Rules.NoAddAny = true }),
	upnpSwitch("Rules.AddAnyResets", func(q *quirks.UPnP) { q.Rules.AddAnyResets = true }),
	upnpSwitch("Rules.AddDisabled", func(q *quirks.UPnP) { q.Rules.AddDisabled = true }).mustFail(mayBeFull),
	upnpSwitch("Rules.PortFault", func(q *quirks.UPnP) { q.Rules.PortFault, q.Rules.Port = 899, 443 }),
	upnpSwitch("Rules.DeleteIgnored", func(q *quirks.UPnP) { q.Rules.DeleteIgnored = true }).with(kept),
	upnpSwitch("Rules.DeleteFault", func(q *quirks.UPnP) { q.Rules.DeleteFault = 714 }).with(kept),
	upnpSwitch("Rules.DeleteAbsent", func(q *quirks.UPnP) { q.Rules.DeleteAbsent = 713 }),
	upnpSwitch("Rules.DeleteFailures", func(q *quirks.UPnP) { q.Rules.DeleteFailures = 1 }),
	upnpSwitch("Listing.NoSpecific", func(q *quirks.UPnP) { q.Listing.NoSpecific = true }),
	upnpSwitch("Listing.Absent", func(q *quirks.UPnP) { q.Listing.Absent = 402 }),
	upnpSwitch("Listing.EndOfList", func(q *quirks.UPnP) { q.Listing.EndOfList = 402 }),
	upnpSwitch("Listing.Endless", func(q *quirks.UPnP) { q.Listing.Endless = true }),
	upnpSwitch("Listing.IndexFails", func(q *quirks.UPnP) { q.Listing.IndexFails = 402 }),
	upnpSwitch("Listing.Client", func(q *quirks.UPnP) { q.Listing.Client = func(netip.Addr) string { return "laptop.lan" } }),
	upnpSwitch("Listing.MalformedRow", func(q *quirks.UPnP) { q.Listing.MalformedRow = true }),
	upnpSwitch("Listing.RangeEscaped", func(q *quirks.UPnP) { q.Listing.RangeEscaped = true }),
	upnpSwitch("Listing.NoRange", func(q *quirks.UPnP) { q.Listing.NoRange = true }),
	upnpSwitch("Listing.RangeResets", func(q *quirks.UPnP) { q.Listing.RangeResets = true }),
	upnpSwitch("Status.External", func(q *quirks.UPnP) { q.Status.External = func(netip.Addr) string { return "unknown" } }),
	upnpSwitch("Status.Connection=Up", func(q *quirks.UPnP) { q.Status.Connection = "Up" }),
	upnpSwitch("Status.Connection=Disconnected", func(q *quirks.UPnP) { q.Status.Connection = "Disconnected" }),
	upnpSwitch("Status.Unsupported", func(q *quirks.UPnP) { q.Status.Unsupported = true }),
	upnpSwitch("Firewall.Disabled", func(q *quirks.UPnP) { q.Firewall.Disabled = true }).with(v6),
	upnpSwitch("Firewall.NotAllowed", func(q *quirks.UPnP) { q.Firewall.NotAllowed = true }).with(v6).mustFail(mayRefuse),
	upnpSwitch("Firewall.Absent", func(q *quirks.UPnP) { q.Firewall.Absent = 402 }).with(v6),
	upnpSwitch("Firewall.NeverWorking", func(q *quirks.UPnP) { q.Firewall.NeverWorking = true }).with(v6),
}
