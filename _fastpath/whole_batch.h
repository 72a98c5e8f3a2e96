/* Inlines every inline function of a module, where Cython leaves it to the compiler.
 *
 * A batch is written once and compiled for each encapsulation, which is a constant argument all the way down: what
 * that leaves out must not be asked for every packet, and a function that is called in three places would be left alone.
 */
#ifndef FLANNEL_UDP_WHOLE_BATCH_H
#define FLANNEL_UDP_WHOLE_BATCH_H

#undef CYTHON_INLINE
#define CYTHON_INLINE inline __attribute__((always_inline, unused))

#endif
