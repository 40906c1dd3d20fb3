package backends

import "errors"

// The kinds of failure, equal for all backends. Test for them with errors.Is. The
// errors that wrap them have the protocol's own code and text.
var (
	// ErrInvalid means that the request is not valid. Nothing was sent.
	ErrInvalid = errors.New("invalid request")
	// ErrUnsupported means that the backend or its gateway cannot express the
	// request.
	ErrUnsupported = errors.New("not supported")
	// ErrNoReply means that the gateway did not reply, or that the port of the
	// protocol is closed.
	ErrNoReply = errors.New("no reply from the gateway")
	// ErrMalformed means that the gateway's response violates the protocol.
	ErrMalformed = errors.New("malformed reply")
	// ErrNetworkFailure means that the gateway currently has no connection to the
	// internet.
	ErrNetworkFailure = errors.New("the gateway has no working connection to the internet")
	// ErrNoResources means that the gateway has no resources for another mapping.
	ErrNoResources = errors.New("the gateway is out of resources")
	// ErrNotAuthorized means that the gateway's policy forbids the request.
	ErrNotAuthorized = errors.New("the gateway refuses")
	// ErrConflict means that another client has the requested port.
	ErrConflict = errors.New("the port is taken")
	// ErrNoMapping means that the gateway does not have the mapping.
	ErrNoMapping = errors.New("no such mapping")
	// ErrPrivateWAN means that the gateway's external address is private, because
	// the gateway itself is behind another NAT.
	ErrPrivateWAN = errors.New("the gateway's external address is private")
)
