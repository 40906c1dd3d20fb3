#!/bin/sh
# Tells a running Transmission to listen on the port that the gateway forwards. It
# fails where Transmission does not answer or refuses, and is then run again.
set -eu
rpc=${TRANSMISSION_RPC:-http://127.0.0.1:9091/transmission/rpc}

# A password, where there is one, is in ~/.netrc and not on the command line.
ask() { curl --silent --show-error --max-time 10 --netrc-optional "$@" "$rpc"; }

# The first answer, 409, has the token that Transmission wants with each request.
session=$(ask --output /dev/null --dump-header - | grep -i '^X-Transmission-Session-Id:' | tr -d '\r')

# Its own port forwarding would ask for other ports beside this one.
answer=$(ask --header "$session" --data '{"method": "session-set", "arguments": {
	"peer-port": '"$GOFORWARD_INTERNAL_PORT"', "peer-port-random-on-start": false, "port-forwarding-enabled": false}}')
case $answer in
*'"result":"success"'* | *'"result": "success"'*) echo "Transmission listens on port $GOFORWARD_INTERNAL_PORT" ;;
*) echo "Transmission answers: $answer" && exit 1 ;;
esac
