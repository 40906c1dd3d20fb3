package quirks

// Search has the quirks of SSDP.
type Search struct {
	// MulticastOnly leaves searches unanswered whose HOST is not a multicast
	// address; UnicastOnly, those whose HOST is one.
	MulticastOnly, UnicastOnly bool
	// OtherPort answers from another port than the one that was asked.
	OtherPort bool
	// Version is that of the targets announced and answered. Zero is [UPnP.Version].
	Version int
	// FirstOnly answers ssdp:all with one device alone, which is no gateway.
	FirstOnly bool
	// NoIGD2 leaves searches for InternetGatewayDevice:2 unanswered.
	NoIGD2 bool
	// NoPort1900 leaves searches from port 1900 unanswered.
	NoPort1900 bool
	// Location changes the LOCATION told; it is called with the true one. Empty
	// from it leaves the header out. Nil: the true one.
	Location func(string) string
	// Duplicates is how many more copies of each answer are sent, at most 100.
	Duplicates int
	// Spread delays each answer by a random time up to the MX of the search, at
	// most 5 s. By default answers come at once.
	Spread bool
	// Garbage is sent before the answers to each search, one datagram each.
	Garbage [][]byte
	// LFOnly ends lines with LF; NoSpace leaves no space behind colons; NoReason
	// has a status line without a reason; NoBlankLine leaves out the last line.
	LFOnly, NoSpace, NoReason, NoBlankLine bool
	// BootIDStuck never changes the BOOTID.
	BootIDStuck bool
	// Update has SetExternal notify with ssdp:update and NEXTBOOTID, which is the
	// BOOTID from then on, before the usual ssdp:alive.
	Update bool
}

// Description has the quirks of the device description.
type Description struct {
	// Path is where it is. Empty is /rootDesc.xml.
	Path string
	// WANDevices is how many there are, at most 16. Zero is one. Only number
	// Connected, from 0, has an external address: the others are Disconnected,
	// and refuse to map with fault 501.
	WANDevices, Connected int
	// Connections is which connection services each has.
	Connections Connections
	// DSLForum has types of urn:dslforum-org.
	DSLForum bool
	// URLBase is what stands there as the base of URLs.
	URLBase URLBaseForm
	// ControlURL is how control URLs are written.
	ControlURL ControlURLForm
}

// Connections is which connection services a WANConnectionDevice has.
type Connections uint8

// The choices of connection services.
const (
	// ConnectionIP: WANIPConnection.
	ConnectionIP Connections = iota
	// ConnectionPPP: WANPPPConnection:1.
	ConnectionPPP
	// ConnectionBoth: first WANPPPConnection:1, which is Disconnected, then
	// WANIPConnection. They have control URLs of their own.
	ConnectionBoth
)

// URLBaseForm is what a description has as its URLBase.
type URLBaseForm uint8

// The forms of URLBase.
const (
	// URLBaseAbsent: none.
	URLBaseAbsent URLBaseForm = iota
	// URLBaseEmpty: an empty element.
	URLBaseEmpty
	// URLBaseGood: where the description is served.
	URLBaseGood
	// URLBaseWrongHost: another host, where nothing is.
	URLBaseWrongHost
	// URLBaseNoPort: the right host without the port.
	URLBaseNoPort
)

// ControlURLForm is how a description writes its control URLs.
type ControlURLForm uint8

// The forms of control URLs.
const (
	// ControlRooted: "/ctl/…".
	ControlRooted ControlURLForm = iota
	// ControlAbsolute: "http://…", where the description is served.
	ControlAbsolute
	// ControlRelative: "ctl/…", beside the description.
	ControlRelative
	// ControlRelativeToRoot: "ctl/…", served at "/ctl/…" wherever the description is.
	ControlRelativeToRoot
	// ControlColon: a first segment with a colon in it.
	ControlColon
	// ControlSpaces: white space around it.
	ControlSpaces
	// ControlWrongHost: the path is right, the host is another one where nothing is.
	ControlWrongHost
	// ControlEmpty: nothing.
	ControlEmpty
)

// Wire has the quirks of the HTTP server, which answers one request of a
// connection in HTTP/1.1 and reads no chunked bodies.
type Wire struct {
	// HTTP10 answers in HTTP/1.0.
	HTTP10 bool
	// NoLength ends the body with the connection.
	NoLength bool
	// Chunked sends the body in chunks, except to HTTP/1.0.
	Chunked bool
	// LengthOff is added to the Content-Length told.
	LengthOff int
	// LFOnly ends lines with LF; NoSpace leaves no space behind colons; NoReason
	// has a status line without a reason.
	LFOnly, NoSpace, NoReason bool
	// LeaveOpen leaves the connection open after the body, for more requests,
	// until the client closes it.
	LeaveOpen bool
}

// XML has the quirks of all documents: descriptions, answers and faults.
type XML struct {
	// Latin1 declares ISO-8859-1 and has such a letter in names and fault texts.
	Latin1 bool
	// BadUTF8 has a byte in names and fault texts that is not UTF-8.
	BadUTF8 bool
	// RawAmpersand has an & in names and fault texts that is not escaped.
	RawAmpersand bool
	// BOM starts with a byte order mark; LeadingSpace, with a line end and a
	// space; NoDeclaration leaves the XML declaration out.
	BOM, LeadingSpace, NoDeclaration bool
	// NULTail ends with bytes 0.
	NULTail bool
	// Prefix is the namespace prefix of the description's elements. Empty: none.
	Prefix string
	// NoNamespace leaves out the description's namespace declaration.
	NoNamespace bool
}

// FaultForm has the quirks of SOAP faults.
type FaultForm struct {
	// Prefix is the namespace prefix of envelopes, such as "SOAP-ENV". Empty is "s".
	Prefix string
	// CamelCase writes faultCode and faultString.
	CamelCase bool
	// CodePrefix is the namespace prefix of UPnPError's elements. Empty: none.
	CodePrefix string
	// CodeSpaces has white space around the code.
	CodeSpaces bool
	// StatusOK sends faults with HTTP status 200.
	StatusOK bool
	// Code is told instead of every other, such as -911. Zero: the right one.
	Code int
}
