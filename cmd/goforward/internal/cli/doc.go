// Package cli is the command line of goforward. Package main calls [Main], which handles the
// signals of the process. The tests call [Run].
//
// # Output
//
// Results go to stdout, so that they can be piped: an endpoint, an address, a table, or with
// --json one object per line. Messages go to stderr. Text that may come from the network or
// from another program is printed with its control characters escaped.
//
// # Files
//
// The command line and its output:
//
//   - app.go: the app, the root command, and the flags that all commands share
//   - args.go: parsers for flag values and the command of --exec
//   - ports.go: parsers for port arguments
//   - help.go: the command help, the layout of the help, and the texts of the commands
//   - topics.go: the texts of goforward help TOPIC
//   - exit.go: exit codes, kinds of errors, and the last error message
//   - hint.go: the last line of an error: the next step
//   - mistakes.go: what the user most likely meant by an invalid command line
//   - signals.go: the signals of the process
//   - output.go: stdout and stderr, tables, and the line that a silent command prints while it
//     waits
//   - text.go: text for people, such as endpoints, mappings and times
//   - json.go: mappings as JSON
//
// The commands:
//
//   - map.go and spec.go: map, and a requested mapping with its flags
//   - remarks.go: what map says about a mapping after it is granted
//   - verify.go, verify_via.go and verify_output.go: verify and map --verify, the ways of --via, and
//     the output
//   - hold.go: map --hold and run keep mappings alive and delete them at the end
//   - hold_output.go: the output of map --hold. handleEvent prints every event of a mapping:
//     mapped, changed, lost, restored. printFailure prints failed attempts.
//   - run.go: run, the command that runs while its mappings are kept
//   - hook.go: actions for each new endpoint, and the command of --exec
//   - process_unix.go and process_other.go: the processes of run and --exec
//   - shell.go: the warning that no shell reads the command of --exec
//   - portfile.go: the file of --port-file
//   - unmap.go and unmap_backend.go: unmap, and the deletion by one protocol
//   - unmap_all.go and unmap_dryrun.go: unmap --all and unmap --dry-run
//   - holders.go: which other program of the user keeps a mapping alive
//   - list.go, ip.go, gateways.go, probe.go, demo.go, version.go: the commands of these names
//   - watch.go and watch_output.go: watch, and its output
//   - watch_exec.go: the command of watch --exec
//   - reflect.go and certificate.go: reflect, and its certificate
//
// To find the code that prints a lost mapping, start at heldMapping.handleEvent in
// hold_output.go. It calls print, which writes the line for people and the JSON objects.
//
// Access to gateways:
//
//   - backend.go: the protocols, their backends, and the search for backends that the gateway
//     supports
//   - gatewayname.go: the lookup of the host name of --gateway
//   - route.go: the route to the gateway, for watch, and the interfaces of this host
//   - key.go: the user's key, from which PCP nonces are derived
//   - memory.go, memory_unix.go and memory_other.go: the protocols of gateways, remembered
//     across runs
package cli
