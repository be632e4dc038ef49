package testenv

import "go.uber.org/goleak"

// VerifyNoLeaks runs the tests of a package and fails if a goroutine is left. It ignores the
// goroutines that fasthttp keeps after a server has stopped: they sleep for up to 10 s and only then
// see the stop.
func VerifyNoLeaks(m goleak.TestingM, ignored ...goleak.Option) {
	options := append(ignored,
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
	)
	goleak.VerifyTestMain(patientM{m, options}, options...)
}

// patientM waits after the tests until no goroutine is left, at most for Patience. The half second that goleak
// waits is too short for those that are about to end on a busy machine.
type patientM struct {
	goleak.TestingM
	options []goleak.Option // without goleak.Cleanup, which goleak.Find refuses
}

// Run runs the tests.
func (m patientM) Run() (code int) {
	if code = m.TestingM.Run(); code == 0 {
		Poll(Patience, func() bool { return goleak.Find(m.options...) == nil })
	}
	return code
}
