package backends

import "errors"

// The kinds of failure, the same for every backend. Test for them with
// errors.Is; the error around them carries the protocol's own code and text.
var (
	// ErrInvalid: the request makes no sense; nothing was sent.
	ErrInvalid = errors.New("invalid request")
	// ErrUnsupported: the backend, or the gateway that it talks to, cannot express the request.
	ErrUnsupported = errors.New("not supported")
	// ErrNoReply: the gateway did not answer, or refuses the protocol's port.
	ErrNoReply = errors.New("no reply from the gateway")
	// ErrMalformed: the gateway answered with something that the protocol does not allow.
	ErrMalformed = errors.New("malformed reply")
	// ErrNetworkFailure: the gateway has no connection to the internet just now.
	ErrNetworkFailure = errors.New("the gateway has no working connection to the internet")
	// ErrNoResources: the gateway has no room for another mapping.
	ErrNoResources = errors.New("the gateway is out of resources")
	// ErrNotAuthorized: the gateway refuses by policy.
	ErrNotAuthorized = errors.New("the gateway refuses")
	// ErrConflict: somebody else holds the port that was asked for.
	ErrConflict = errors.New("the port is taken")
	// ErrPrivateWAN: the gateway's own external address is private: another NAT stands before it.
	ErrPrivateWAN = errors.New("the gateway's external address is private")
)
