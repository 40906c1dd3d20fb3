package quirks

import "time"

// Search has the quirks of SSDP.
type Search struct {
	// MulticastOnly ignores searches whose HOST is not a multicast address. UnicastOnly
	// ignores searches whose HOST is a multicast address.
	MulticastOnly, UnicastOnly bool
	// OtherPort sends responses from a port other than the one at which the search
	// arrived.
	OtherPort bool
	// Version is the version of the targets in notifications and responses. Zero means
	// [UPnP.Version].
	Version int
	// FirstOnly responds to ssdp:all with only one device, which is not a gateway.
	FirstOnly bool
	// NoIGD2 ignores searches for InternetGatewayDevice:2.
	NoIGD2 bool
	// NoPort1900 ignores searches from port 1900.
	NoPort1900 bool
	// ConnectionOnly ignores searches for anything but WANIPConnection and
	// WANPPPConnection.
	ConnectionOnly bool
	// IPv4Only offers UPnP over IPv4 only, even with gatewaytest.Config.Listen6. The
	// description has the IPv6 firewall service in both versions. That service opens,
	// changes and deletes pinholes for any IPv6 host.
	IPv4Only bool
	// Location returns the LOCATION header to send. Its argument is the true URL. If it
	// returns an empty string, the header is omitted. Nil sends the true URL.
	Location func(string) string
	// Duplicates is the number of additional copies of each response that are sent, at
	// most 100.
	Duplicates int
	// Spread delays each response by a random time up to the MX of the search, at most 5
	// s. By default, responses are sent immediately.
	Spread bool
	// Delay sends each response that much later, in real time.
	Delay time.Duration
	// Garbage is sent before the responses to each search, one datagram for each
	// element.
	Garbage [][]byte
	// LFOnly ends lines with LF. NoSpace writes no space after colons. NoReason writes a
	// status line without a reason. NoBlankLine omits the last line.
	LFOnly, NoSpace, NoReason, NoBlankLine bool
	// BootIDStuck never changes the BOOTID.
	BootIDStuck bool
	// Update makes SetExternal send ssdp:update with NEXTBOOTID before the usual
	// ssdp:alive. The BOOTID then has the value of NEXTBOOTID.
	Update bool
}

// Description has the quirks of the device description.
type Description struct {
	// Path is the path of the description. An empty string means /rootDesc.xml.
	Path string
	// WANDevices is the number of WAN devices, at most 16. Zero means one. Connected is
	// the index, from 0, of the only device that has an external address. The others
	// have the state Disconnected, and refuse mappings with fault 501.
	WANDevices, Connected int
	// Connections selects the connection services of each WANConnectionDevice.
	Connections Connections
	// DSLForum uses types of urn:dslforum-org.
	DSLForum bool
	// URLBase is the form of the URLBase element.
	URLBase URLBaseForm
	// ControlURL is the form of the control URLs.
	ControlURL ControlURLForm
	// TwoSessions adds a second connection service of the same type to each
	// WANConnectionDevice. It has the same state, its own control URL, and its own
	// mappings. Its external address is the one after the address of the first.
	TwoSessions bool
	// FirstRefuses is the fault of the first connection service of each
	// WANConnectionDevice for all mappings. Zero means no fault.
	FirstRefuses int
	// SharedUDN gives all devices the UDN of the root device.
	SharedUDN bool
	// MediaServer describes and announces a media server, which has no connection
	// service.
	MediaServer bool

	// Status is the HTTP status of the response to a request for the description, with
	// an HTML page as its body. If the status is between 300 and 399, the header LOCATION
	// has a path at which there is no page. Zero means 200 and the description.
	Status int
	// HTML responds with status 200 and an HTML page.
	HTML bool
	// FirstReset is the number of first requests for the description whose connections
	// are reset. FirstStatus is the number of requests after these that get status 503.
	FirstReset, FirstStatus int
}

// Connections selects the connection services of a WANConnectionDevice.
type Connections uint8

// The choices of connection services.
const (
	// ConnectionIP is WANIPConnection.
	ConnectionIP Connections = iota
	// ConnectionPPP is WANPPPConnection:1.
	ConnectionPPP
	// ConnectionBoth is first WANPPPConnection:1, which is Disconnected, and then
	// WANIPConnection. Each has its own control URL.
	ConnectionBoth
)

// URLBaseForm is the form of the URLBase element in a description.
type URLBaseForm uint8

// The forms of URLBase.
const (
	// URLBaseAbsent omits the element.
	URLBaseAbsent URLBaseForm = iota
	// URLBaseEmpty writes an empty element.
	URLBaseEmpty
	// URLBaseGood writes the URL at which the description is served.
	URLBaseGood
	// URLBaseWrongHost writes another host, at which no server listens.
	URLBaseWrongHost
	// URLBaseNoPort writes the right host without the port.
	URLBaseNoPort
	// URLBaseName writes a host name that does not exist, with the right port.
	URLBaseName
	// URLBaseOldHost writes an address without a server, and the right port.
	URLBaseOldHost
	// URLBaseDeep writes the right host and port, and a path. Control URLs are relative
	// to it: those of ControlRooted are written as "ctl/…".
	URLBaseDeep
)

// ControlURLForm is the form of the control URLs in a description.
type ControlURLForm uint8

// The forms of control URLs.
const (
	// ControlRooted is "/ctl/…".
	ControlRooted ControlURLForm = iota
	// ControlAbsolute is "http://…", at the host and port of the description.
	ControlAbsolute
	// ControlRelative is "ctl/…", relative to the description.
	ControlRelative
	// ControlRelativeToRoot is "ctl/…", but is served at "/ctl/…", regardless of the
	// path of the description.
	ControlRelativeToRoot
	// ControlColon is a relative URL whose first segment contains a colon.
	ControlColon
	// ControlSpaces has white space around the URL.
	ControlSpaces
	// ControlWrongHost has the right path and another host, at which no server listens.
	ControlWrongHost
	// ControlEmpty is an empty element.
	ControlEmpty
	// ControlQuery is "?control=…", relative to the description.
	ControlQuery
	// ControlParent is "../ctl/…", relative to the description.
	ControlParent
	// ControlDot is "./ctl/…", relative to the description.
	ControlDot
	// ControlSchemeRelative is "//host:port/ctl/…", with the right host and port.
	ControlSchemeRelative
	// ControlHostPort is "host:port/ctl/…", with the right host and port.
	ControlHostPort
)

// Wire has the quirks of the HTTP server. By default, the server handles one request for
// each connection, in HTTP/1.1, and does not accept chunked bodies.
type Wire struct {
	// HTTP10 responds in HTTP/1.0.
	HTTP10 bool
	// Version is the version in the status line, such as "HTTP1.1". An empty string
	// means HTTP/1.1, or HTTP/1.0 with HTTP10.
	Version string
	// NoLength omits the Content-Length: the end of the connection ends the body.
	NoLength bool
	// Chunked sends the body in chunks, except to HTTP/1.0 clients.
	Chunked bool
	// LengthOff is added to the value of Content-Length.
	LengthOff int
	// LFOnly ends lines with LF. NoSpace writes no space after colons. NoReason writes a
	// status line without a reason.
	LFOnly, NoSpace, NoReason bool
	// LeaveOpen leaves the connection open after the body, for further requests, until
	// the client closes it.
	LeaveOpen bool
}

// XML has the quirks of all documents: descriptions, responses and faults.
type XML struct {
	// Latin1 declares the encoding ISO-8859-1, and adds a letter in that encoding to
	// names and fault texts.
	Latin1 bool
	// BadUTF8 adds bytes that are not valid UTF-8 to names and fault texts.
	BadUTF8 bool
	// RawAmpersand adds an & that is not escaped to names and fault texts.
	RawAmpersand bool
	// BOM starts the document with a byte order mark. LeadingSpace starts it with a line
	// end and a space. NoDeclaration omits the XML declaration.
	BOM, LeadingSpace, NoDeclaration bool
	// NULTail ends the document with zero bytes.
	NULTail bool
	// Prefix is the namespace prefix of the elements in the description. An empty string
	// means no prefix.
	Prefix string
	// NoNamespace omits the namespace declaration of the description.
	NoNamespace bool

	// GluedNamespace writes no space before the namespace declaration of a UPnPError.
	GluedNamespace bool
	// CommentDashes adds a comment that contains "--" to the outermost element, EchoPI
	// the processing instruction "<? echo ?>", and TextCDATAEnd the text "]]>".
	CommentDashes, EchoPI, TextCDATAEnd bool
	// AttrLess adds an attribute to the outermost element whose value is "<".
	AttrLess bool
	// SpacedTag writes a space after the < of each tag.
	SpacedTag bool
}

// FaultForm has the quirks of SOAP faults.
type FaultForm struct {
	// Prefix is the namespace prefix of envelopes, such as "SOAP-ENV". An empty string
	// means "s".
	Prefix string
	// CamelCase writes faultCode and faultString.
	CamelCase bool
	// CodePrefix is the namespace prefix of the elements of UPnPError. An empty string
	// means no prefix.
	CodePrefix string
	// CodeSpaces writes white space around the code.
	CodeSpaces bool
	// StatusOK sends faults with HTTP status 200.
	StatusOK bool
	// Code is the fault code, such as -911, that is sent in place of every other. Zero
	// means the right code.
	Code int
}
