module github.com/natforward/goforward/bench

go 1.26.6

replace github.com/natforward/goforward => ..

require (
	github.com/ethereum/go-ethereum v1.17.10
	github.com/huin/goupnp v1.3.0
	github.com/jackpal/go-nat-pmp v1.1.0
	github.com/libp2p/go-libp2p v0.51.0
	github.com/natforward/goforward v0.0.0-00010101000000-000000000000
	golang.org/x/net v0.58.0
	golang.org/x/sys v0.47.0
	tailscale.com v1.102.5 // the last that Go 1.26 compiles
)

require (
	github.com/coder/websocket v1.8.14 // indirect
	github.com/dblohm7/wingoes v0.0.0-20240119213807-a09d6be7affa // indirect
	github.com/go-json-experiment/json v0.0.0-20260214004413-d219187c3433 // indirect
	github.com/google/go-cmp v0.7.0 // indirect
	github.com/hashicorp/errwrap v1.1.0 // indirect
	github.com/hashicorp/go-multierror v1.1.1 // indirect
	github.com/holiman/uint256 v1.3.2 // indirect
	github.com/jsimonetti/rtnetlink v1.4.1 // indirect
	github.com/koron/go-ssdp v0.9.1 // indirect
	github.com/libp2p/go-netroute v0.4.0 // indirect
	github.com/mdlayher/netlink v1.11.2 // indirect
	github.com/mdlayher/socket v0.6.0 // indirect
	github.com/pion/dtls/v3 v3.1.5 // indirect
	github.com/pion/logging v0.2.4 // indirect
	github.com/pion/stun/v3 v3.1.7 // indirect
	github.com/pion/transport/v4 v4.1.0 // indirect
	github.com/wlynxg/anet v0.0.5 // indirect
	go4.org/mem v0.0.0-20240501181205-ae6ca9944745 // indirect
	go4.org/netipx v0.0.0-20231129151722-fdeea329fbba // indirect
	golang.org/x/crypto v0.55.0 // indirect
	golang.org/x/exp v0.0.0-20260718201538-764159d718ef // indirect
	golang.org/x/sync v0.22.0 // indirect
	golang.zx2c4.com/wireguard/windows v0.5.3 // indirect
)
