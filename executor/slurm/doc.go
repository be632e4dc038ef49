// Package slurm is an executor.Durable that runs attempts as jobs of a Slurm cluster, by sbatch,
// squeue and scancel.
//
// Each attempt has a folder, which the server and the cluster's nodes share:
//
//	DIR/<run>/<task>.<attempt>/
//	    run         how it is started: a script, written by the server
//	    text        its command string, if that is too long for an argument
//	    job         name and array index of the job that it was submitted as
//	    begun       created by the job, then the attempt has begun;
//	                or by the server, then it never will
//	    out, err    what it prints
//	    grace       how long it has between SIGTERM and SIGKILL, when it is killed
//	    cause       why it was ended: "killed", "timed out"
//	    unstarted   what could not be started: "program", "folder"
//	    end         exit code and CPU time, written by the job
//	    verdict     the final report, written by the server before it is made
//	DIR/log/<job>   Slurm's own messages on a job
//	DIR/id          this folder's own name in the cluster
//
// An attempt starts at most once because only one process can create begun (O_EXCL), and only the
// job that the folder names tries to. A job that was submitted twice, requeued, or comes late finds
// begun, another name, or no folder, and exits. So an order that is given again after a restart
// (Order.Resume) can always be decided: its job is looked up by name, and an attempt that has not
// begun and that Slurm does not know is submitted again. Attempts that are not ordered again are
// orphans and are ended (ExpectResume, ResumeDone).
//
// One goroutine, the reconciler (reconciler.go), owns all that is known of attempts. It performs
// these duties whenever a request comes or the poll interval is over:
//
//  1. Serve requests: orders, kills, acknowledgements.
//  2. Submit waiting orders (submit.go). Similar orders of one run share a job array. One sbatch
//     runs at a time, outside the reconciler's goroutine.
//  3. Poll the state of all jobs, by one squeue per interval, and compare each attempt with it.
//  4. End attempts. The job's own script gets SIGUSR1, and ends the attempt's process group with the
//     attempt's grace. A script that does not act on it is cancelled by Slurm.
//
// Ended attempts are collected outside the reconciler's goroutine (output.go): their output goes
// into the store, their final report into the folder, and then to the sink. The folder is removed
// once the end is acknowledged.
//
// Lock: Slurm.mu guards the requests and the table of live output. It is not held over I/O.
//
// Reading order: slurm.go, reconciler.go, attempt.go, submit.go, commands.go, output.go, folder.go.
package slurm
