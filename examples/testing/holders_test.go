package main

// The tests of this repository leave no files in the runtime directory of the user.
import _ "github.com/natforward/goforward/internal/holders/unshared"
