{
exec 3<&0 2>&1
LC_ALL=C; export LC_ALL
echo "goforward @TAG"

# probe runs goforward until it ends, or until ssh ends: descriptor 3 is then at its end.
probe() {
	goforward probe "@ENDPOINT/@PROTOCOL" "$@" </dev/null 2>&1 3<&- & p=$!
	{ read -r x <&3; kill "$p"; } >/dev/null & w=$!
	wait "$p"; s=$?
	kill "$w" && wait "$w"
	return "$s"
} 2>/dev/null

if command -v goforward >/dev/null; then
	if [ @COUNT = 1 ]; then probe --nonce=@NONCE; else probe && probe; fi
	case $? in
	0 | 7) exit ;;
	2) ;; # a version without this command
	*) echo failed; exit ;;
	esac
fi
if command -v bash >/dev/null; then
	exec bash -c '
set -f

# connect opens the port as descriptor $1.
connect() {
	eval "exec $1<>/dev/@PROTOCOL/@ADDRESS/@PORT" && return
	echo failed
	return 1
}

# name prints the source port of descriptor $1, from the tables of the kernel.
name() {
	inode=$(readlink "/proc/self/fd/$1"); inode=${inode#socket:[}; inode=${inode%]}
	[ -n "$inode" ] || return
	for table in /proc/net/tcp /proc/net/tcp6; do
		mapfile -t rows <"$table"
		for row in "${rows[@]}"; do
			[[ $row == *" $inode "* ]] || continue
			set -- $row
			[ "${10}" = "$inode" ] && echo "from $((16#${2##*:}))"
		done
	done
}

tcp() {
	connect 4 || return
	if [ @COUNT = 1 ]; then
		printf %s "@BYTES" >&4
		echo connected
	else
		name 4; echo connected
		connect 5 || return
		name 5; echo connected
	fi
	read -r -t 2 -u 3 x # the connections stay open
}

udp() {
	connect 4 || return
	said=sent
	for i in 1 2 3; do
		printf %s "@BYTES" >&4
		read -r -t 1 -n 1 -u 4 x
		[ $? = 1 ] && said=refused
	done
	echo "$said"
}

@PROTOCOL & p=$!
read -r -t 5 -u 3 x
kill -9 "$p" && wait "$p"
echo timeout
' </dev/null 3<&3
fi
echo "neither goforward nor bash is installed there"
echo failed
exit
}
