package lab

// RequireProgram adds a program that the lab requires.
func RequireProgram(name string) { requiredPrograms = append(requiredPrograms, name) }

// WithoutRole returns env for a test binary that creates its own namespaces.
var WithoutRole = withoutRole
