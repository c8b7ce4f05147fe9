"""The ExtremeWeather data set: where to get it (README.rst), and a generator of weather of the same form."""
