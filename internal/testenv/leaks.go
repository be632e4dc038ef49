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

// FindLeaks waits until no goroutine is left that is not ignored, at most for Patience, and returns an error
// if one is. The half second that goleak waits is too short for those that are about to end on a busy machine.
func FindLeaks(ignored ...goleak.Option) (err error) {
	Poll(Patience, func() bool {
		err = goleak.Find(ignored...)
		return err == nil
	})
	return err
}

// patientM waits after the tests until no goroutine is left.
type patientM struct {
	goleak.TestingM
	options []goleak.Option // without goleak.Cleanup, which goleak.Find refuses
}

// Run runs the tests.
func (m patientM) Run() (code int) {
	if code = m.TestingM.Run(); code == 0 {
		_ = FindLeaks(m.options...) // goleak looks once more, and reports them
	}
	return code
}
