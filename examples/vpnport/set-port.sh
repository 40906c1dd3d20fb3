#!/bin/sh
# Makes a running Transmission listen on the port that the gateway forwards. The script fails
# if Transmission does not respond or refuses the port; goforward then runs the script again.
set -eu
rpc=${TRANSMISSION_RPC:-http://127.0.0.1:9091/transmission/rpc}

# If Transmission needs a password, it is in ~/.netrc, not on the command line.
ask() { curl --silent --show-error --max-time 10 --netrc-optional "$@" "$rpc"; }

# The first response, with status 409, has the token that each request must contain.
session=$(ask --output /dev/null --dump-header - | grep -i '^X-Transmission-Session-Id:' | tr -d '\r')

# Transmission's own port forwarding would map other ports.
answer=$(ask --header "$session" --data '{"method": "session-set", "arguments": {
	"peer-port": '"$GOFORWARD_INTERNAL_PORT"', "peer-port-random-on-start": false, "port-forwarding-enabled": false}}')
case $answer in
*'"result":"success"'* | *'"result": "success"'*) echo "Transmission listens on port $GOFORWARD_INTERNAL_PORT" ;;
*) echo "Transmission answers: $answer" && exit 1 ;;
esac
