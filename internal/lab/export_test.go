package lab

// NeedProgram makes a lab impossible where this program is not installed.
func RequireProgram(name string) { requiredPrograms = append(requiredPrograms, name) }

// WithoutRole is env for a test binary that shall make a world of its own.
var WithoutRole = withoutRole
